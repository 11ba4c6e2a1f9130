//! What the layers of a calibrated run spend their time on.

use std::time::{Duration, Instant};

use serde::Serialize;

/// What time goes into, beside running the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Sums of what matrices multiply: Hessians, importance.
    Statistics,
    /// Factors of Hessians.
    Factor,
    /// Codes and scales, packed; the gradients that decide them, where they are learned.
    Codes,
    /// Turning and scaling a layer before anything is rounded.
    Reshaping,
}

/// The time of the layers so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Clock {
    layers: u32,
    whole: Duration,
    spent: [Duration; 4],
}

/// Seconds of wall time that a layer took, on average of those that ran.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LayerSeconds {
    /// Layers that ran.
    pub layers: u32,
    /// All of it.
    pub whole: f64,
    /// Running the layer, dense and quantized, with its states from disk and back.
    pub forward: f64,
    /// Summing what its matrices multiply.
    pub statistics: f64,
    /// Factoring Hessians.
    pub factor: f64,
    /// Choosing codes and packing them.
    pub codes: f64,
    /// Turning and scaling it beforehand.
    pub reshaping: f64,
}

impl Clock {
    /// What `work` gives, its time counted as `what`.
    pub fn time<T>(&mut self, what: Work, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let done = work();
        self.add(what, began.elapsed());
        done
    }

    /// Counts `time` as `what`.
    pub fn add(&mut self, what: Work, time: Duration) {
        self.spent[what as usize] += time;
    }

    /// Counts a layer that took `whole`, and what `within` it was spent on other work than running it.
    pub fn add_layer(&mut self, whole: Duration, within: &Self) {
        self.layers += 1;
        self.whole += whole;
        self.spent.iter_mut().zip(within.spent).for_each(|(spent, more)| *spent += more);
    }

    /// Averages; `None` before the first layer.
    pub fn read(&self) -> Option<LayerSeconds> {
        if self.layers == 0 {
            return None;
        }
        let mean = |time: Duration| time.as_secs_f64() / f64::from(self.layers);
        let of = |work: Work| mean(self.spent[work as usize]);
        let elsewhere: Duration = self.spent.iter().sum();
        Some(LayerSeconds {
            layers: self.layers,
            whole: mean(self.whole),
            forward: mean(self.whole.saturating_sub(elsewhere)),
            statistics: of(Work::Statistics),
            factor: of(Work::Factor),
            codes: of(Work::Codes),
            reshaping: of(Work::Reshaping),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_spent_elsewhere_is_running_the_layer() {
        let mut clock = Clock::default();
        assert_eq!(clock.read(), None);
        let seconds = |spent: [u64; 4]| Clock { spent: spent.map(Duration::from_secs), ..Clock::default() };
        clock.add_layer(Duration::from_secs(10), &seconds([1, 2, 3, 0]));
        clock.add_layer(Duration::from_secs(20), &seconds([2, 2, 5, 1]));
        let read = clock.read().unwrap();
        assert_eq!((read.layers, read.whole, read.forward), (2, 15.0, 7.0));
        assert_eq!((read.statistics, read.factor, read.codes, read.reshaping), (1.5, 2.0, 4.0, 0.5));
    }

    #[test]
    fn work_is_timed_as_what_it_is() {
        let mut clock = Clock::default();
        let answer = clock.time(Work::Factor, || {
            std::thread::sleep(Duration::from_millis(2));
            42
        });
        assert_eq!(answer, 42);
        assert!(clock.spent[Work::Factor as usize] >= Duration::from_millis(2));
        assert_eq!(clock.spent[Work::Codes as usize], Duration::ZERO);
    }
}
