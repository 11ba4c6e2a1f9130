//! Sums of squares of what each matrix multiplies.

use std::collections::{BTreeMap, HashMap};

use bitmill_checkpoint::{ImatrixEntry, Role};
use bitmill_kernels::Compute;
use bitmill_model::Model;
use bitmill_tensor::Matrix;
use rayon::prelude::*;

use crate::Error;

/// Columns that one task sums.
const TASK_COLUMNS: usize = 256;

/// What the matrices of a model multiplied, squared and summed in f64, token after token: neither threads nor how texts are
/// put together change a sum by more than the products' own rounding.
///
/// ```
/// use bitmill_calib::SumsOfSquares;
/// use bitmill_checkpoint::Checkpoint;
/// use bitmill_kernels::{Compute, Isa, Path};
/// use bitmill_model::Model;
///
/// let folder = bitmill_testkit::tiny(bitmill_testkit::Variant::Llama);
/// let model = Model::load(&Checkpoint::open(folder.path())?)?;
/// let compute = Compute::new(Isa::best(), Path::Exact);
/// let mut sums = SumsOfSquares::default();
/// sums.add(&model, &compute, &[&[1, 17, 42], &[1, 5]])?;
/// let entries = sums.finish(&model)?;
/// assert_eq!(entries["blk.0.attn_q.weight"].counts, [5]);
/// assert_eq!(entries["blk.0.ffn_down.weight"].sums.len(), 160);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct SumsOfSquares {
    of: HashMap<Role, (Vec<f64>, u64)>,
}

impl SumsOfSquares {
    /// Runs `texts`, each a sequence of its own, and adds what every matrix multiplies.
    ///
    /// # Errors
    /// [`Error::Model`] if a text is empty, longer than the context, or has a token without a row.
    pub fn add(&mut self, model: &Model, compute: &Compute, texts: &[&[u32]]) -> Result<(), Error> {
        let mut stage = model.enter(compute, texts)?;
        for layer in 0..model.config().n_layers {
            model.pass_layer(compute, &mut stage, |kind, expert, x| {
                self.add_rows(Role { layer: Some(layer), expert, kind }, x);
            });
        }
        Ok(())
    }

    fn add_rows(&mut self, role: Role, x: &Matrix) {
        let cols = x.cols();
        let (sums, count) = self.of.entry(role).or_insert_with(|| (vec![0.0; cols], 0));
        *count += x.rows() as u64;
        sums.par_chunks_mut(TASK_COLUMNS).enumerate().for_each(|(task, sums)| {
            let first = task * TASK_COLUMNS;
            for row in x.as_slice().chunks_exact(cols) {
                for (sum, &value) in sums.iter_mut().zip(&row[first..]) {
                    *sum += f64::from(value) * f64::from(value);
                }
            }
        });
    }

    /// The entries of an importance matrix: by GGUF name, the experts of a layer one after another, with a count for each.
    ///
    /// # Errors
    /// [`Error::NotFinite`] naming a matrix that multiplied infinity or NaN.
    pub fn finish(self, model: &Model) -> Result<BTreeMap<String, ImatrixEntry>, Error> {
        let mut entries: BTreeMap<String, ImatrixEntry> = BTreeMap::new();
        let n_experts = model.config().experts.as_ref().map_or(1, |experts| experts.count);
        let named = |(role, summed): (Role, _)| {
            (role.layer, role.gguf_name().unwrap_or_default(), role.expert, role, summed)
        };
        let mut summed: Vec<_> = self.of.into_iter().map(named).collect();
        summed.sort_by(|a, b| (a.0, &a.1, a.2).cmp(&(b.0, &b.1, b.2)));
        for (_, name, _, role, (sums, count)) in summed {
            let finite = |sum: &f64| (*sum as f32).is_finite();
            if !sums.iter().all(finite) {
                return Err(Error::NotFinite { tensor: role.canonical_name().unwrap_or_default() });
            }
            let (expert, matrices) = role.expert.map_or((0, 1), |expert| (expert, n_experts));
            let cols = sums.len();
            let entry = entries.entry(name).or_insert_with(|| ImatrixEntry {
                sums: vec![0.0; matrices * cols],
                counts: vec![0; matrices],
            });
            entry.counts[expert] = count;
            for (out, sum) in entry.sums[expert * cols..].iter_mut().zip(sums) {
                *out = sum as f32;
            }
        }
        Ok(entries)
    }
}
