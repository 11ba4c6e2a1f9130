//! Peak resident memory, as the kernel counts it.
//!
//! The figure is `VmHWM`: the most pages the process ever had in RAM at once. Mapped files count as soon as their
//! pages are touched, so a model that is only mapped is not free here, as it is not free in life.

use std::fs;

use bitmill_report::PeakScope;

/// The process's peak resident memory in bytes since it began or since [`reset_peak`]; none where the system does
/// not tell (it does on Linux).
pub fn peak_bytes() -> Option<u64> {
    high_water_mark(&fs::read_to_string("/proc/self/status").ok()?)
}

/// The memory that the process takes now, in bytes; none where the system does not tell.
pub fn resident_bytes() -> Option<u64> {
    field(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// Sets the peak back to what is resident now, and says what [`peak_bytes`] covers from here on.
///
/// Some sandboxes and containers refuse; then the peak goes on covering the whole process, and the caller records
/// that beside the figure instead of passing an upper bound off as a measurement.
pub fn reset_peak() -> PeakScope {
    let before = peak_bytes();
    // "5" resets the high-water mark, see proc(5). Some kernels accept the write and do nothing, so look.
    let written = fs::write("/proc/self/clear_refs", "5").is_ok();
    let resident = fs::read_to_string("/proc/self/status").ok().and_then(|status| field(&status, "VmRSS:"));
    match (written, before, peak_bytes(), resident) {
        (true, Some(before), Some(after), Some(resident)) if is_reset(before, after, resident) => {
            PeakScope::Measurement
        }
        _ => PeakScope::Process,
    }
}

/// A mark that fell was reset. One that did not fall was reset all the same if it had been at the top already, to
/// within what other threads may have allocated between the two looks.
fn is_reset(before: u64, after: u64, resident: u64) -> bool {
    const SLACK_BYTES: u64 = 1 << 20;
    after < before || after <= resident + SLACK_BYTES
}

fn high_water_mark(status: &str) -> Option<u64> {
    field(status, "VmHWM:")
}

fn field(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_mark_in_bytes_and_nothing_from_other_systems() {
        assert_eq!(high_water_mark("Name:\tx\nVmPeak:\t  9 kB\nVmHWM:\t    2048 kB\n"), Some(2 << 20));
        assert_eq!(high_water_mark("VmHWM:\tmany kB\n"), None);
        assert_eq!(high_water_mark(""), None);
    }

    #[test]
    fn a_mark_that_stays_high_counts_as_not_reset() {
        assert!(is_reset(100 << 20, 40 << 20, 40 << 20));
        assert!(is_reset(40 << 20, 40 << 20, 40 << 20));
        assert!(!is_reset(100 << 20, 100 << 20, 40 << 20));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn touching_memory_raises_the_peak_after_a_reset() {
        let scope = reset_peak();
        let before = peak_bytes().unwrap();
        let block = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = peak_bytes().unwrap();
        drop(block);
        // Where the mark cannot be reset, earlier tests may have raised it further than this one does.
        if scope == PeakScope::Measurement {
            assert!(after >= before + (60 << 20), "{before} {after}");
        }
        assert!(after >= 64 << 20);
    }
}
