//! The UDP socket under the endpoint: large buffers, and batches that the kernel accepts.
//!
//! quinn hands the kernel up to ten datagrams at once (segmentation offload). A batch of more than 64 KiB fails with
//! `EMSGSIZE`, which quinn-udp takes for a failed path-MTU probe and drops: with jumbo frames every full batch is then
//! lost, until the connection falls back to the smallest MTU at a fifth of the speed. [`CappedSocket`] keeps batches
//! below that.

use std::{
    io::{self, IoSliceMut},
    net::{SocketAddr, UdpSocket},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use quinn::{
    AsyncUdpSocket, Runtime, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::limits::MTU_BOUND;

/// Wanted size of the kernel's buffers, each way, in bytes. The kernel's default overflows within a few milliseconds.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// Most payload of one UDP packet over IPv4, and so of one batch, in bytes.
const BATCH_BYTES_MAX: usize = 65_507;

/// Binds a UDP socket with large buffers. A socket on an IPv6 wildcard address takes IPv4 too.
pub(super) fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    let socket = UdpSocket::from(socket);
    grow_buffers(&socket);
    Ok(socket)
}

/// Asks for large buffers. Smaller ones only cost speed, so that they are reported and not an error.
fn grow_buffers(socket: &UdpSocket) {
    let socket = SockRef::from(socket);
    // Linux books twice the asked size and reports what it booked.
    let granted = |size: io::Result<usize>| if cfg!(target_os = "linux") { size.map(|size| size / 2) } else { size };
    if let Err(error) = socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES) {
        tracing::debug!(%error, "cannot grow the UDP receive buffer");
    }
    if let Err(error) = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES) {
        tracing::debug!(%error, "cannot grow the UDP send buffer");
    }
    for (sysctl, size) in [
        ("net.core.rmem_max", granted(socket.recv_buffer_size())),
        ("net.core.wmem_max", granted(socket.send_buffer_size())),
    ] {
        if let Ok(size) = size
            && size < SOCKET_BUFFER_BYTES
        {
            tracing::warn!(
                granted_bytes = size,
                wanted_bytes = SOCKET_BUFFER_BYTES,
                "small UDP buffers slow transfers down; raise {sysctl} to {SOCKET_BUFFER_BYTES}"
            );
        }
    }
}

/// A socket whose batches stay below [`BATCH_BYTES_MAX`].
#[derive(Debug)]
pub(super) struct CappedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    /// The largest datagram handed over so far, in bytes. A connection only makes batches of a size that a single
    /// probe of it has had before, so that the cap is always there in time; and on networks without jumbo frames
    /// batches stay as long as quinn makes them.
    largest: AtomicUsize,
    /// Whether the loss of segmentation offload was reported.
    reported: AtomicBool,
}

impl CappedSocket {
    /// Registers `socket` with the runtime of the current task.
    pub(super) fn new(socket: UdpSocket, runtime: &dyn Runtime) -> io::Result<Self> {
        let inner = runtime.wrap_udp_socket(socket)?;
        let socket = Self { inner, largest: AtomicUsize::new(1), reported: AtomicBool::new(false) };
        socket.report_offload(socket.inner.max_transmit_segments());
        Ok(socket)
    }

    fn report_offload(&self, segments: usize) {
        if segments <= 1 && !self.reported.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "no UDP segmentation offload on this system: peer transfers take about four times the processor time"
            );
        }
    }
}

impl AsyncUdpSocket for CappedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let datagram = transmit.segment_size.unwrap_or(transmit.contents.len());
        if datagram > self.largest.load(Ordering::Relaxed) {
            self.largest.fetch_max(datagram, Ordering::Relaxed);
        }
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, buffers, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        // The kernel may refuse offload later on (a network card without checksums); quinn-udp then falls back to one.
        let segments = self.inner.max_transmit_segments();
        self.report_offload(segments);
        segments.min(BATCH_BYTES_MAX / self.largest.load(Ordering::Relaxed)).max(1)
    }

    fn max_receive_segments(&self) -> usize {
        // quinn makes room for this many datagrams of the largest size in each receive buffer. The kernel joins at most
        // 64 KiB, however many datagrams these are.
        self.inner.max_receive_segments().min(usize::from(u16::MAX).div_ceil(usize::from(MTU_BOUND)))
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn transmit(contents: &[u8], segment_size: Option<usize>) -> Transmit<'_> {
        Transmit { destination: ([127, 0, 0, 1], 9).into(), ecn: None, contents, segment_size, src_ip: None }
    }

    async fn send(socket: &Arc<CappedSocket>, transmit: Transmit<'_>) {
        let mut poller = Arc::clone(socket).create_io_poller();
        std::future::poll_fn(|cx| poller.as_mut().poll_writable(cx)).await.unwrap();
        socket.try_send(&transmit).unwrap();
    }

    #[tokio::test]
    async fn batches_shrink_when_datagrams_grow() {
        let socket = bind(([127, 0, 0, 1], 0).into()).unwrap();
        let socket = Arc::new(CappedSocket::new(socket, &quinn::TokioRuntime).unwrap());
        let offload = socket.inner.max_transmit_segments();
        let bytes = vec![0; usize::from(MTU_BOUND)];
        send(&socket, transmit(&bytes[..1452], None)).await;
        assert_eq!(socket.max_transmit_segments(), offload.min(45));
        send(&socket, transmit(&bytes, None)).await;
        assert_eq!(socket.max_transmit_segments(), offload.min(7));
        send(&socket, transmit(&bytes[..2904], Some(1452))).await;
        assert_eq!(socket.max_transmit_segments(), offload.min(7), "the largest datagram counts");
    }

    #[tokio::test]
    async fn a_receive_buffer_holds_what_the_kernel_joins() {
        let socket = CappedSocket::new(bind(([127, 0, 0, 1], 0).into()).unwrap(), &quinn::TokioRuntime).unwrap();
        if socket.inner.max_receive_segments() > 1 {
            assert!(socket.max_receive_segments() * usize::from(MTU_BOUND) >= 65_535);
        }
    }
}
