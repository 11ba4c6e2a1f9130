//! Reading, encoding and writing at once: while the threads of the pool encode a chunk of rows, the system reads the next
//! one and a thread of its own writes the one before.
//!
//! ```text
//! system   read k+1 ─┐ (asked for ahead)
//! pool               └▶ widen, prune, round, measure k ─┐ (at most two chunks wait)
//! writer                                                └▶ hash and write k−1, record the tensor after its last
//! ```

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use bitmill_checkpoint::{Checkpoint, Tensor};
use bitmill_kernels::Isa;

use crate::compress::TensorRecord;
use crate::error::Error;
use crate::layout::Output;
use crate::plan::{Plan, PlannedTensor, rows_and_columns};
use crate::progress::Progress;
use crate::tensor_run::{Encoded, TensorRun, rows_per_chunk};
use crate::tensor_write::TensorWrite;

/// Chunks that may wait for the writer: while it is held up by the disk, encoding goes on.
pub(crate) const WAITING: usize = 2;

/// Rows that are encoded and not yet written.
struct Chunk {
    /// The tensor's number in the plan.
    tensor: usize,
    encoded: Vec<Encoded>,
    weights: u64,
    /// Whether the tensor ends here.
    last: bool,
}

/// Encodes every tensor of `plan` and writes it to `output`; what was done to each.
///
/// # Errors
/// The first of encoding, else of writing.
pub(crate) fn stream(
    checkpoint: &Checkpoint,
    plan: &Plan,
    output: &Output<'_>,
    progress: &dyn Progress,
) -> Result<Vec<TensorRecord>, Error> {
    thread::scope(|scope| {
        let (send, receive) = sync_channel(WAITING);
        let writer = scope.spawn(|| write(plan, output, receive, progress));
        let encoded = encode(checkpoint, plan, &send);
        // Without a sender the writer ends after what it was sent.
        drop(send);
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        encoded.and(written)
    })
}

/// Sends the rows of all tensors in their order; stops early if the writer did, which knows why.
fn encode(checkpoint: &Checkpoint, plan: &Plan, send: &SyncSender<Chunk>) -> Result<(), Error> {
    let isa = Isa::best();
    let mut tensors = plan.tensors.iter().enumerate().peekable();
    while let Some((index, planned)) = tensors.next() {
        let tensor = checkpoint.tensor(&planned.source)?;
        let run = TensorRun::new(checkpoint, plan, planned, &tensor, isa)?;
        let (rows, cols) = (planned.out_features(), planned.in_features());
        let chunk_rows = rows_per_chunk(cols);
        for first in (0..rows).step_by(chunk_rows) {
            let chunk = chunk_rows.min(rows - first);
            let last = first + chunk == rows;
            if !last {
                ask_for(&tensor, planned, first + chunk);
            } else if let Some((_, next)) = tensors.peek() {
                ask_for(&checkpoint.tensor(&next.source)?, next, 0);
            }
            let encoded = run.encode(first, chunk)?;
            tensor.release();
            let weights = (chunk * cols) as u64;
            if send.send(Chunk { tensor: index, encoded, weights, last }).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Has the system read the chunk that begins with row `first`.
fn ask_for(tensor: &Tensor, planned: &PlannedTensor, first: usize) {
    let (rows, _) = rows_and_columns(&planned.source_shape);
    let end = (first + rows_per_chunk(planned.in_features())).min(rows);
    tensor.will_need_rows(first.min(end)..end);
}

fn write(
    plan: &Plan,
    output: &Output<'_>,
    receive: Receiver<Chunk>,
    progress: &dyn Progress,
) -> Result<Vec<TensorRecord>, Error> {
    let total = plan.tensors.iter().map(PlannedTensor::weights).sum();
    let mut done = 0;
    let mut records = Vec::with_capacity(plan.tensors.len());
    let mut under_way: Option<TensorWrite<'_>> = None;
    for chunk in receive {
        let mut tensor =
            under_way.take().unwrap_or_else(|| TensorWrite::new(&plan.tensors[chunk.tensor], chunk.tensor));
        for encoded in &chunk.encoded {
            tensor.add(output, encoded)?;
        }
        if chunk.last {
            records.push(tensor.finish(output)?);
        } else {
            under_way = Some(tensor);
        }
        done += chunk.weights;
        progress.at(done, total);
    }
    Ok(records)
}
