//! What the figures were measured on.

use std::fs;
use std::thread::available_parallelism;

use serde::{Deserialize, Serialize};

/// The machine that measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name as it gives it; "unknown" where the system does not tell.
    pub cpu: String,
    /// Hardware threads that the process may use.
    pub cores: usize,
    /// Threads that it did use.
    pub threads: usize,
    /// Memory of the machine, in bytes; 0 where the system does not tell.
    pub memory_bytes: u64,
    /// Instruction set of the kernels: "scalar", "avx2", "avx512-vnni".
    pub isa: String,
    /// Operating system and architecture, "linux x86_64".
    pub os: String,
}

impl Machine {
    /// Asks the system. `isa` names the kernels in use, `threads` is the size of the pool.
    pub fn read(isa: &str, threads: usize) -> Self {
        // On other systems the files are missing and the fields say so.
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self {
            cpu: cpu_name(&cpuinfo).unwrap_or_else(|| "unknown".into()),
            cores: available_parallelism().map_or(1, usize::from),
            threads,
            memory_bytes: memory_bytes(&meminfo).unwrap_or(0),
            isa: isa.into(),
            os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }
}

/// "model name" on x86; Arm kernels tell at most "Hardware" or "Model".
fn cpu_name(cpuinfo: &str) -> Option<String> {
    ["model name", "Hardware", "Model"].iter().find_map(|key| {
        cpuinfo.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            // Vendors pad the name with blanks.
            let value = value.split_whitespace().collect::<Vec<_>>().join(" ");
            (name.trim() == *key && !value.is_empty()).then_some(value)
        })
    })
}

fn memory_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_processors_name_without_its_padding() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC 7B13   64-Core \nmodel\t\t: 1\n";
        assert_eq!(cpu_name(text).as_deref(), Some("AMD EPYC 7B13 64-Core"));
        assert_eq!(cpu_name("processor: 0\nHardware : BCM2835\n").as_deref(), Some("BCM2835"));
        assert_eq!(cpu_name("model name\t:\n"), None);
    }

    #[test]
    fn reads_the_memory_in_bytes() {
        assert_eq!(memory_bytes("MemTotal:       16384 kB\nMemFree: 1 kB\n"), Some(16 << 20));
        assert_eq!(memory_bytes("MemTotal: much\n"), None);
    }

    #[test]
    fn asking_the_system_keeps_what_the_caller_knows() {
        let machine = Machine::read("avx2", 3);
        assert_eq!((machine.isa.as_str(), machine.threads), ("avx2", 3));
        assert!(machine.cores >= 1);
        assert!(!machine.cpu.is_empty());
    }
}
