//! Reading, encoding and writing at once: while the threads of the pool encode a chunk of rows, the system reads the next
//! one, a thread of its own writes the one before, and another waits for the disk to have what was written and notes it in
//! the journal.
//!
//! ```text
//! system   read k+1 ─┐ (asked for ahead)
//! pool               └▶ widen, prune, round, measure k ─┐ (at most two chunks wait)
//! writer                                                └▶ hash and write k−1 ─┐ (records of whole tensors)
//! noter                                                                        └▶ flush, then note all that waited
//! ```

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use bitmill_checkpoint::{Checkpoint, Tensor};
use bitmill_kernels::Isa;

use crate::calibrated::{Calibrated, Done, MethodRecord};
use crate::compress::TensorRecord;
use crate::encode::{ScaleBase, rows_together};
use crate::error::Error;
use crate::journal;
use crate::layout::Output;
use crate::plan::{Plan, PlannedTensor, rows_and_columns};
use crate::progress::Progress;
use crate::source::Source;
use crate::tensor_run::{Encoded, TensorRun, rows_per_chunk};
use crate::tensor_write::TensorWrite;

/// Chunks that may wait for the writer: while it is held up by the disk, encoding goes on.
pub(crate) const WAITING: usize = 2;

/// What is finished is noted after so many bytes or this long: small tensors share a flush of the disk.
const NOTED_BYTES: u64 = 64 << 20;
const NOTED_AFTER: Duration = Duration::from_millis(500);

/// Rows that are encoded and not yet written.
struct Chunk {
    /// The tensor's number in the plan.
    tensor: usize,
    encoded: Vec<Encoded>,
    weights: u64,
    /// How the tensor's codes were chosen, where not by its weights alone.
    method: Option<MethodRecord>,
    /// Whether the tensor ends here.
    last: bool,
    /// What scales of fp8 are divided by.
    base: ScaleBase,
}

/// Encodes every tensor of `plan` after those that are `finished` and writes it to `output`, which goes to `path`; what was
/// done to each of all.
///
/// # Errors
/// The first of encoding, else of writing, else of flushing.
pub(crate) fn stream(
    checkpoint: &Checkpoint,
    plan: &Plan,
    path: &Path,
    output: &Output<'_>,
    finished: Vec<TensorRecord>,
    calibrated: Option<&mut Calibrated<'_>>,
    progress: &dyn Progress,
) -> Result<Vec<TensorRecord>, Error> {
    for (index, planned) in plan.tensors.iter().enumerate().take(finished.len()) {
        output.count_written(index, planned.bytes_after);
    }
    let first = finished.len();
    let forget = is_larger_than_memory(plan.source_bytes);
    let noted = AtomicUsize::new(first);
    thread::scope(|scope| {
        let (send, receive) = sync_channel(WAITING);
        let (send_record, receive_records) = channel();
        let writer = scope.spawn(|| write(plan, output, receive, finished, send_record, progress));
        let noter = scope.spawn(|| note(output, receive_records, &noted, forget));
        let encoded = encode(checkpoint, plan, path, first, calibrated, &noted, &send, forget, progress);
        // Without a sender the writer ends after what it was sent, and so does the noter.
        drop(send);
        let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let noted = noter.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        encoded?;
        let written = written?;
        noted.map(|()| written)
    })
}

/// Whether a model takes more than half of the machine's memory: it leaves the system's memory of files no room for anything else, and
/// what is done with is forgotten.
pub(crate) fn is_larger_than_memory(bytes: u64) -> bool {
    let system = rustix::system::sysinfo();
    bytes > (system.totalram as u64).saturating_mul(u64::from(system.mem_unit)) / 2
}

/// Sends the rows of all tensors in their order; stops early if the writer did, which knows why.
fn encode(
    checkpoint: &Checkpoint,
    plan: &Plan,
    path: &Path,
    first: usize,
    mut calibrated: Option<&mut Calibrated<'_>>,
    noted: &AtomicUsize,
    send: &SyncSender<Chunk>,
    forget: bool,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let isa = Isa::best();
    let source = Source::new(checkpoint, plan);
    let mut tensors = plan.tensors.iter().enumerate().skip(first).peekable();
    while let Some((index, planned)) = tensors.next() {
        if let Some(calibrated) = &mut calibrated
            && let Some(done) = calibrated.take(index, noted.load(Ordering::Relaxed), progress, path)?
        {
            let Done { encoded, method, base } = done;
            let weights = planned.weights();
            let chunk = Chunk { tensor: index, encoded, weights, method, last: true, base };
            if send.send(chunk).is_err() {
                return Ok(());
            }
            continue;
        }
        let opened = source.open(isa, planned)?;
        let tensor = &opened.tensor;
        let run = TensorRun::new(&source, planned, &opened, isa)?;
        let (rows, cols) = (planned.out_features(), planned.in_features());
        let chunk_rows = rows_per_chunk(cols).next_multiple_of(rows_together(planned.to));
        for first in (0..rows).step_by(chunk_rows) {
            if progress.is_stopped() {
                return Err(Error::Stopped { path: path.into() });
            }
            let chunk = chunk_rows.min(rows - first);
            let last = first + chunk == rows;
            if !last {
                ask_for(tensor, planned, first + chunk);
            } else if let Some((_, next)) = tensors.peek() {
                ask_for(&checkpoint.tensor(&next.source)?, next, 0);
            }
            let encoded = run.encode(first, chunk)?;
            tensor.release();
            let weights = (chunk * cols) as u64;
            let base = run.base().clone();
            if send.send(Chunk { tensor: index, encoded, weights, method: None, last, base }).is_err() {
                return Ok(());
            }
        }
        if forget {
            tensor.forget();
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
    mut records: Vec<TensorRecord>,
    send_record: Sender<(serde_json::Value, u64)>,
    progress: &dyn Progress,
) -> Result<Vec<TensorRecord>, Error> {
    let total = plan.tensors.iter().map(PlannedTensor::weights).sum();
    let mut done = plan.tensors.iter().take(records.len()).map(PlannedTensor::weights).sum();
    let mut under_way: Option<TensorWrite<'_>> = None;
    for chunk in receive {
        let mut tensor =
            under_way.take().unwrap_or_else(|| TensorWrite::new(&plan.tensors[chunk.tensor], chunk.tensor));
        for encoded in &chunk.encoded {
            tensor.add(output, encoded)?;
        }
        if chunk.last {
            let record = TensorRecord { method: chunk.method, ..tensor.finish(output, &chunk.base)? };
            if send_record.send((journal::entry(&record), record.bytes)).is_err() {
                // The noter knows why.
                return Ok(records);
            }
            records.push(record);
        } else {
            under_way = Some(tensor);
        }
        done += chunk.weights;
        progress.at(done, total);
    }
    Ok(records)
}

/// Notes what is finished once it is on disk.
fn note(
    output: &Output<'_>,
    receive: Receiver<(serde_json::Value, u64)>,
    noted: &AtomicUsize,
    forget: bool,
) -> Result<(), Error> {
    let (mut waiting, mut bytes) = (Vec::new(), 0);
    let mut since = Instant::now();
    loop {
        let received = receive.recv_timeout(NOTED_AFTER.saturating_sub(since.elapsed()));
        let is_last = received == Err(RecvTimeoutError::Disconnected);
        if let Ok((record, size)) = received {
            waiting.push(record);
            bytes += size;
        }
        if is_last || bytes >= NOTED_BYTES || since.elapsed() >= NOTED_AFTER {
            if !waiting.is_empty() {
                output.note(&waiting)?;
                noted.fetch_add(waiting.len(), Ordering::Relaxed);
                waiting.clear();
                if forget {
                    output.forget();
                }
            }
            (bytes, since) = (0, Instant::now());
        }
        if is_last {
            return Ok(());
        }
    }
}
