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
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use bitmill_checkpoint::{Checkpoint, Tensor};
use bitmill_kernels::Isa;

use crate::calibrated::{Calibrated, Done, MethodRecord, RuntimeScales};
use crate::compress::TensorRecord;
use crate::encode::{ScaleBase, rows_together};
use crate::error::Error;
use crate::journal;
use crate::layout::Output;
use crate::plan::{Plan, PlannedTensor, reading_order, rows_and_columns};
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
    /// What runtimes divide by, where that is asked for.
    runtime: RuntimeScales,
}

/// An output under way.
pub(crate) struct Job<'a, 'c> {
    pub plan: &'a Plan,
    /// Where it goes.
    pub path: &'a Path,
    pub output: &'a Output<'a>,
    /// What was done to its first tensors.
    pub finished: Vec<TensorRecord>,
    pub calibrated: Option<&'a mut Calibrated<'c>>,
}

/// Encodes every tensor of each job's plan after those that are finished and writes it to the job's output; what was done to each
/// of all. Several jobs go layer by layer, the one that is furthest behind first.
///
/// # Errors
/// The number of the job that failed, and why: the first of encoding, else of writing, else of flushing.
pub(crate) fn stream(
    checkpoint: &Checkpoint,
    jobs: Vec<Job<'_, '_>>,
    progress: &dyn Progress,
) -> Result<Vec<Vec<TensorRecord>>, (usize, Error)> {
    let weights = |planned: &[PlannedTensor]| planned.iter().map(PlannedTensor::weights).sum::<u64>();
    let total = jobs.iter().map(|job| weights(&job.plan.tensors)).sum();
    let done = AtomicU64::new(jobs.iter().map(|job| weights(&job.plan.tensors[..job.finished.len()])).sum());
    let noted: Vec<AtomicUsize> = jobs.iter().map(|job| AtomicUsize::new(job.finished.len())).collect();
    thread::scope(|scope| {
        let (done, mut encoders, mut threads) = (&done, Vec::new(), Vec::new());
        for (Job { plan, path, output, finished, calibrated }, noted) in jobs.into_iter().zip(&noted) {
            for (index, planned) in plan.tensors.iter().enumerate().take(finished.len()) {
                output.count_written(index, planned.bytes_after);
            }
            let forget = is_larger_than_memory(plan.source_bytes);
            let next = finished.len();
            let (send, receive) = sync_channel(WAITING);
            let (send_record, receive_records) = channel();
            let count =
                move |weights| progress.at(done.fetch_add(weights, Ordering::Relaxed) + weights, total);
            let writer = scope.spawn(move || write(plan, output, receive, finished, send_record, &count));
            let noter = scope.spawn(move || note(output, receive_records, noted, forget));
            threads.push((writer, noter));
            let source = Source::new(checkpoint, plan);
            encoders.push(Encoder { source, path, next, calibrated, noted, send: Some(send), forget });
        }
        let mut encoded = Ok(());
        while let Some((job, encoder)) = furthest_behind(&mut encoders) {
            encoded = encoder.encode_layer(progress).map_err(|error| (job, error));
            if encoded.is_err() {
                break;
            }
        }
        // Without a sender the writer ends after what it was sent, and so does the noter.
        drop(encoders);
        let ended: Vec<_> = threads
            .into_iter()
            .map(|(writer, noter)| {
                let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                let noted = noter.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                written.and_then(|written| noted.map(|()| written))
            })
            .collect();
        encoded?;
        ended.into_iter().enumerate().map(|(job, ended)| ended.map_err(|error| (job, error))).collect()
    })
}

/// The job whose next tensor comes first in a model, the first of several; `None` if none has one.
fn furthest_behind<'e, 'a, 'c>(
    encoders: &'e mut [Encoder<'a, 'c>],
) -> Option<(usize, &'e mut Encoder<'a, 'c>)> {
    let place = |encoder: &Encoder<'_, '_>| encoder.send.as_ref().and(encoder.place());
    let (job, _) = encoders
        .iter()
        .enumerate()
        .filter_map(|(job, encoder)| Some((job, place(encoder)?)))
        .min_by_key(|(_, place)| *place)?;
    Some((job, &mut encoders[job]))
}

/// Whether a model takes more than half of the machine's memory: it leaves the system's memory of files no room for anything else, and
/// what is done with is forgotten.
pub(crate) fn is_larger_than_memory(bytes: u64) -> bool {
    let system = rustix::system::sysinfo();
    bytes > (system.totalram as u64).saturating_mul(u64::from(system.mem_unit)) / 2
}

/// Sends the rows of a plan's tensors in their order.
struct Encoder<'a, 'c> {
    source: Source<'a>,
    path: &'a Path,
    /// The tensor that comes next.
    next: usize,
    calibrated: Option<&'a mut Calibrated<'c>>,
    noted: &'a AtomicUsize,
    /// None once the writer has stopped, which knows why.
    send: Option<SyncSender<Chunk>>,
    forget: bool,
}

impl Encoder<'_, '_> {
    /// Where the next tensor is in a model.
    fn place(&self) -> Option<(u8, usize)> {
        self.source.plan.tensors.get(self.next).map(|planned| reading_order(&planned.role))
    }

    /// Sends tensors up to the end of the next one's layer.
    fn encode_layer(&mut self, progress: &dyn Progress) -> Result<(), Error> {
        let place = self.place();
        while self.send.is_some() && self.place().is_some() && self.place() == place {
            self.encode_tensor(progress)?;
            self.next += 1;
        }
        Ok(())
    }

    fn encode_tensor(&mut self, progress: &dyn Progress) -> Result<(), Error> {
        let isa = Isa::best();
        let Self { source, path, calibrated, noted, send, forget, next: index } = self;
        let (plan, index) = (source.plan, *index);
        let planned = &plan.tensors[index];
        let mut runtime = RuntimeScales::default();
        if let Some(calibrated) = calibrated {
            let done = calibrated.take(index, noted.load(Ordering::Relaxed), progress, path)?;
            let method = done.as_ref().and_then(|done| done.method.as_ref());
            runtime = calibrated.runtime_scales(index, method)?;
            if let Some(Done { encoded, method, base }) = done {
                let weights = planned.weights();
                pass_on(send, Chunk { tensor: index, encoded, weights, method, last: true, base, runtime });
                return Ok(());
            }
        }
        let opened = source.open(isa, planned)?;
        let tensor = &opened.tensor;
        let run = TensorRun::new(source, planned, &opened, isa)?;
        let (rows, cols) = (planned.out_features(), planned.in_features());
        let chunk_rows = rows_per_chunk(cols).next_multiple_of(rows_together(planned.to));
        for first in (0..rows).step_by(chunk_rows) {
            if progress.is_stopped() {
                return Err(Error::Stopped { path: path.to_owned() });
            }
            let chunk = chunk_rows.min(rows - first);
            let last = first + chunk == rows;
            if !last {
                ask_for(tensor, planned, first + chunk);
            } else if let Some(next) = plan.tensors.get(index + 1) {
                ask_for(&source.checkpoint.tensor(&next.source)?, next, 0);
            }
            let encoded = run.encode(first, chunk)?;
            tensor.release();
            let weights = (chunk * cols) as u64;
            let base = run.base().clone();
            if !pass_on(send, Chunk { tensor: index, encoded, weights, method: None, last, base, runtime }) {
                return Ok(());
            }
        }
        if *forget {
            tensor.forget();
        }
        Ok(())
    }
}

/// Sends `chunk` to the writer; false, and no writer any more, if it has stopped.
fn pass_on(send: &mut Option<SyncSender<Chunk>>, chunk: Chunk) -> bool {
    if send.as_ref().is_some_and(|send| send.send(chunk).is_err()) {
        *send = None;
    }
    send.is_some()
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
    count: &dyn Fn(u64),
) -> Result<Vec<TensorRecord>, Error> {
    let mut under_way: Option<TensorWrite<'_>> = None;
    for chunk in receive {
        let mut tensor =
            under_way.take().unwrap_or_else(|| TensorWrite::new(&plan.tensors[chunk.tensor], chunk.tensor));
        for encoded in &chunk.encoded {
            tensor.add(output, encoded)?;
        }
        if chunk.last {
            let record =
                TensorRecord { method: chunk.method, ..tensor.finish(output, &chunk.base, chunk.runtime)? };
            if send_record.send((journal::entry(&record), record.bytes)).is_err() {
                // The noter knows why.
                return Ok(records);
            }
            records.push(record);
        } else {
            under_way = Some(tensor);
        }
        count(chunk.weights);
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
