//! Speed of one connection of the data plane on loopback: `cargo run --release -p shoal-daemon --example plane -- serve`
//! prints an address and a key; `... -- pull ADDRESS KEY [CHUNKS] [AT ONCE]` pulls chunks of 4 MiB from it.

#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::wildcard_enum_match_arm, reason = "a measuring tool")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use shoal_daemon::{
    identity::Identity,
    quic::{DataPlane, DataPlaneConfig, PlaneEvent},
    secret::Secret,
};
use shoal_proto::{
    chain::{Ends, State},
    chunk::ChunkIndex,
    digest::Digest,
    peer::{Contact, PeerId},
    wire::Ask,
};
use tokio::sync::{Semaphore, mpsc};

const CHUNK_BYTES: usize = 4 << 20;

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (sender, events) = mpsc::channel(64);
    let config = DataPlaneConfig::new(([127, 0, 0, 1], 0).into(), Identity::generate(), Secret::none());
    let peer = config.identity.peer();
    let plane = DataPlane::bind(config, sender).unwrap();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve"] => {
            let key: String = peer.0.iter().map(|byte| format!("{byte:02x}")).collect();
            println!("{} {key}", plane.local_address());
            serve(events).await;
        }
        ["pull", address, key, ref rest @ ..] => {
            let key: Vec<u8> = (0..32).map(|i| u8::from_str_radix(&key[2 * i..2 * i + 2], 16).unwrap()).collect();
            let peer = PeerId(key.try_into().unwrap());
            plane.dial(Contact { peer, address: address.parse().unwrap() });
            let number = |at: usize, default: u32| rest.get(at).map_or(default, |text| text.parse().unwrap());
            pull(&plane, peer, events, number(0, 1024), number(1, 4)).await;
            plane.shutdown().await;
        }
        _ => println!("usage: plane serve | plane pull ADDRESS KEY [CHUNKS] [AT ONCE]"),
    }
}

async fn serve(mut events: mpsc::Receiver<PlaneEvent>) {
    let chunk = Bytes::from(vec![42; CHUNK_BYTES]);
    let (mut sent, mut cpu) = (0_u64, cpu_seconds());
    while let Some(event) = events.recv().await {
        match event {
            PlaneEvent::Asked { reply, .. } => {
                sent += CHUNK_BYTES as u64;
                let chunk = chunk.clone();
                tokio::spawn(async move { reply.send(vec![chunk]).await });
            }
            PlaneEvent::Disconnected { .. } => {
                println!("{:.2} CPU s/GB sent", (cpu_seconds() - cpu) / (sent as f64 / 1e9));
                (sent, cpu) = (0, cpu_seconds());
            }
            other => println!("{other:?}"),
        }
    }
}

async fn pull(plane: &DataPlane, peer: PeerId, mut events: mpsc::Receiver<PlaneEvent>, chunks: u32, at_once: u32) {
    println!("{:?}", events.recv().await.unwrap());
    let slots = Arc::new(Semaphore::new(at_once as usize));
    let (start, cpu) = (Instant::now(), cpu_seconds());
    for number in 0..chunks {
        let slot = Arc::clone(&slots).acquire_owned().await.unwrap();
        let plane = plane.clone();
        tokio::spawn(async move {
            let ends = Ends { before: State::INITIAL, after: None };
            let ask = Ask { digest: Digest::sha256([1; 32]), chunk: ChunkIndex(number), ends };
            plane.pull(peer, ask, CHUNK_BYTES as u64, Duration::from_secs(10)).await.unwrap();
            drop(slot);
        });
    }
    let all = slots.acquire_many(at_once).await.unwrap();
    drop(all);
    let gigabytes = f64::from(chunks) * CHUNK_BYTES as f64 / 1e9;
    let seconds = start.elapsed().as_secs_f64();
    println!("{:.2} GB/s, {:.2} CPU s/GB received", gigabytes / seconds, (cpu_seconds() - cpu) / gigabytes);
    println!("{:?}", plane.connected());
}

/// Processor time of this process so far.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    ticks as f64 / 100.0
}
