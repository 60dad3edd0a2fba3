//! Machines of a network that is not there: network namespaces around a bridge, with links of a given rate.

use std::{
    fs,
    net::Ipv4Addr,
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard},
};

use crate::process::Place;

/// Only one lab at a time: they measure.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Where the kernel's named namespaces are.
const NAMESPACES: &str = "/var/run/netns";

/// A network. Its namespaces, and with them all interfaces, are deleted when it is dropped, also by a panic; what a killed
/// test process left behind is deleted by the next lab.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    machines: Vec<String>,
    _alone: MutexGuard<'static, ()>,
}

/// One machine of a lab.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Runs programs there.
    pub place: Place,
    /// Its address.
    pub address: Ipv4Addr,
    namespace: String,
}

impl Lab {
    /// An empty network. Needs root.
    ///
    /// # Panics
    /// If the kernel or the user do not allow it.
    #[must_use]
    pub fn new() -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        sweep();
        let lab = Self { prefix: format!("shoal{}-", std::process::id()), machines: Vec::new(), _alone: alone };
        let switch = lab.switch();
        ip(&["netns", "add", &switch]);
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &switch, "link", "set", "br0", "up"]);
        lab
    }

    /// Adds a machine whose link sends at most so many megabits per second (1 megabit: 125 000 bytes).
    ///
    /// # Panics
    /// If the kernel refuses, or after 250 machines.
    pub fn add(&mut self, megabits: u32) -> Machine {
        let number = u8::try_from(self.machines.len() + 1).expect("a lab is small");
        let namespace = format!("{}{number}", self.prefix);
        let switch = self.switch();
        let port = format!("p{number}");
        let address = Ipv4Addr::new(10, 213, 0, number);
        ip(&["netns", "add", &namespace]);
        self.machines.push(namespace.clone());
        ip(&["-n", &namespace, "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", &switch]);
        ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"]);
        ip(&["-n", &namespace, "link", "set", "lo", "up"]);
        ip(&["-n", &namespace, "link", "set", "eth0", "up"]);
        ip(&["-n", &namespace, "address", "add", &format!("{address}/24"), "dev", "eth0"]);
        // The burst is what a link of this rate sends in 10 ms, and no less than one segment that the kernel hands over.
        let burst = (u64::from(megabits) * 1250).max(128 * 1024).to_string();
        let rate = format!("{megabits}mbit");
        let shape = ["-n", &namespace, "qdisc", "add", "dev", "eth0", "root", "tbf"];
        must("tc", &[&shape[..], &["rate", &rate, "burst", &burst, "latency", "50ms"]].concat());
        Machine { place: Place::Namespace(namespace.clone()), address, namespace }
    }

    fn switch(&self) -> String {
        format!("{}0", self.prefix)
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in self.machines.drain(..).chain([format!("{}0", self.prefix)]) {
            delete(&namespace);
        }
    }
}

impl Machine {
    /// Bytes that its link has sent so far, frames and all.
    ///
    /// # Panics
    /// If the kernel does not tell.
    #[must_use]
    pub fn sent(&self) -> u64 {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.namespace, "cat", "/sys/class/net/eth0/statistics/tx_bytes"])
            .output()
            .expect("ip can be run");
        String::from_utf8_lossy(&output.stdout).trim().parse().expect("the kernel counts bytes")
    }
}

/// Deletes the namespaces of labs whose process is gone.
fn sweep() {
    let Ok(entries) = fs::read_dir(NAMESPACES) else { return };
    for name in entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
        let owner = name.strip_prefix("shoal").and_then(|rest| rest.split_once('-')?.0.parse::<u32>().ok());
        if owner.is_some_and(|pid| pid == std::process::id() || !fs::exists(format!("/proc/{pid}")).unwrap_or(true)) {
            delete(&name);
        }
    }
}

fn delete(namespace: &str) {
    // It is gone already, or somebody still runs in it: then the kernel deletes it when they end.
    Command::new("ip").args(["netns", "delete", namespace]).stderr(Stdio::null()).status().ok();
}

fn ip(arguments: &[&str]) {
    must("ip", arguments);
}

fn must(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {} failed: {errors}", arguments.join(" "));
}
