//! Hidden states between two layers, in a file beside the output under way: memory holds one layer's activations at most, and
//! a run that was killed goes on before the layer that it was in.
//!
//! ```text
//! "bitmill states 1\n"        what it is
//! u64 layer, rows, columns    of all sections together
//! u64 hash                    xxh3 of what follows
//! calibration rows            bf16 or f32, as the recipe says
//! held-out rows               f32: quality is measured on them
//! dense calibration rows      bf16 or f32; only where a method wants them
//! dense held-out rows         f32
//! ```

use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use bitmill_checkpoint::Region;
use bitmill_kernels::{Isa, widen};
use bitmill_tensor::{FloatType, Matrix};
use xxhash_rust::xxh3::Xxh3;

use crate::Error;

const MAGIC: &[u8; 17] = b"bitmill states 1\n";
const HEADER: usize = MAGIC.len() + 4 * 8;

/// Which rows are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Section {
    Calibration,
    HeldOut,
    DenseCalibration,
    DenseHeldOut,
}

impl Section {
    /// In the order of the file.
    const ALL: [Self; 4] = [Self::Calibration, Self::HeldOut, Self::DenseCalibration, Self::DenseHeldOut];
}

/// How many rows each section has, how wide they are and how they are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub columns: usize,
    pub calibration: usize,
    pub held_out: usize,
    /// Whether the dense model's calibration rows are kept too.
    pub dense_calibration: bool,
    /// Of calibration rows.
    pub float: FloatType,
}

impl Shape {
    fn rows(&self, section: Section) -> usize {
        match section {
            Section::Calibration => self.calibration,
            Section::HeldOut | Section::DenseHeldOut => self.held_out,
            Section::DenseCalibration if self.dense_calibration => self.calibration,
            Section::DenseCalibration => 0,
        }
    }

    fn float(&self, section: Section) -> FloatType {
        match section {
            Section::Calibration | Section::DenseCalibration => self.float,
            Section::HeldOut | Section::DenseHeldOut => FloatType::F32,
        }
    }

    fn bytes(&self, section: Section, rows: usize) -> usize {
        rows * self.columns * self.float(section).size_bytes()
    }

    /// Where a section begins.
    fn start(&self, section: Section) -> usize {
        let before = Section::ALL.iter().take_while(|&&other| other != section);
        HEADER + before.map(|&section| self.bytes(section, self.rows(section))).sum::<usize>()
    }

    /// Bytes of a file of states.
    pub fn total_bytes(&self) -> usize {
        self.start(Section::DenseHeldOut) + self.bytes(Section::DenseHeldOut, self.held_out)
    }
}

/// The files of states of a run.
#[derive(Debug, Clone)]
pub(crate) struct StatesFolder {
    folder: PathBuf,
    shape: Shape,
}

/// The states that enter a layer.
#[derive(Debug)]
pub(crate) struct States {
    shape: Shape,
    bytes: Region,
}

/// States that enter the next layer, on their way to their file. Rows of a section come in their order.
pub(crate) struct StatesWriter {
    folder: StatesFolder,
    layer: usize,
    file: BufWriter<File>,
    path: PathBuf,
    /// Of each section, how many rows were written.
    written: [usize; 4],
}

impl StatesFolder {
    pub fn new(folder: PathBuf, shape: Shape) -> Self {
        Self { folder, shape }
    }

    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    fn path(&self, layer: usize) -> PathBuf {
        self.folder.join(format!("states-{layer:05}"))
    }

    /// The states that enter `layer`; `None` if they are not there, or not whole.
    pub fn open(&self, layer: usize) -> Result<Option<States>, Error> {
        let path = self.path(layer);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = Region::map(&path)?;
        let is_whole =
            bytes.len() == self.shape.total_bytes() && bytes[..HEADER] == self.header(layer, hash(&bytes));
        Ok(is_whole.then_some(States { shape: self.shape, bytes }))
    }

    fn header(&self, layer: usize, hash: u64) -> [u8; HEADER] {
        let rows: usize = Section::ALL.iter().map(|&section| self.shape.rows(section)).sum();
        let numbers = [layer as u64, rows as u64, self.shape.columns as u64, hash];
        let mut header = [0; HEADER];
        header[..MAGIC.len()].copy_from_slice(MAGIC);
        for (to, number) in header[MAGIC.len()..].chunks_exact_mut(8).zip(numbers) {
            to.copy_from_slice(&number.to_le_bytes());
        }
        header
    }

    /// Begins the states that enter `layer`.
    pub fn create(&self, layer: usize) -> Result<StatesWriter, Error> {
        let path = self.folder.join("states-under-way");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(|source| write_error(&path, source))?;
        Ok(StatesWriter { folder: self.clone(), layer, file: BufWriter::new(file), path, written: [0; 4] })
    }

    /// Removes the states that enter layers before `layer`.
    pub fn remove_before(&self, layer: usize) -> Result<(), Error> {
        for layer in (0..layer).rev() {
            let path = self.path(layer);
            match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                result => result.map_err(|source| write_error(&path, source))?,
            }
        }
        Ok(())
    }
}

impl States {
    /// Of the rows to calibrate on.
    pub fn calibration_hash(&self) -> u64 {
        let (shape, section) = (&self.shape, Section::Calibration);
        let (at, bytes) = (shape.start(section), shape.bytes(section, shape.calibration));
        let mut hash = Xxh3::new();
        for chunk in self.bytes[at..at + bytes].chunks(1 << 24) {
            hash.update(chunk);
            self.bytes.release();
        }
        hash.digest()
    }

    /// Rows of a section, widened.
    pub fn read(&self, section: Section, rows: Range<usize>) -> Matrix {
        let (shape, float) = (&self.shape, self.shape.float(section));
        let at = shape.start(section) + shape.bytes(section, rows.start);
        let bytes = &self.bytes[at..at + shape.bytes(section, rows.len())];
        let mut out = Matrix::zeros(rows.len(), shape.columns);
        widen(Isa::best(), float, bytes, out.as_mut_slice());
        self.bytes.release();
        out
    }
}

impl StatesWriter {
    /// Adds the next rows of a section.
    pub fn add(&mut self, section: Section, rows: &[f32]) -> Result<(), Error> {
        let shape = &self.folder.shape;
        let float = shape.float(section);
        let place = Section::ALL.iter().position(|&other| other == section).unwrap_or_default();
        let at = shape.start(section) + shape.bytes(section, self.written[place]);
        let failed = |source| write_error(&self.path, source);
        self.file.seek(SeekFrom::Start(at as u64)).map_err(failed)?;
        let mut bytes = vec![0; float.size_bytes() * shape.columns];
        for row in rows.chunks_exact(shape.columns) {
            for (bytes, &value) in bytes.chunks_exact_mut(float.size_bytes()).zip(row) {
                float.write(value, bytes);
            }
            self.file.write_all(&bytes).map_err(failed)?;
        }
        self.written[place] += rows.len() / shape.columns;
        Ok(())
    }

    /// Puts the file in its place, on disk.
    ///
    /// # Panics
    /// If rows are missing.
    pub fn finish(mut self) -> Result<States, Error> {
        let folder = self.folder;
        for (section, written) in Section::ALL.into_iter().zip(self.written) {
            assert_eq!(written, folder.shape.rows(section), "rows of {section:?}");
        }
        let failed = |source| write_error(&self.path, source);
        self.file.flush().map_err(failed)?;
        let bytes = Region::map(&self.path)?;
        let header = folder.header(self.layer, hash(&bytes));
        let file = self.file.get_mut();
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        file.write_all(&header).and_then(|()| file.sync_data()).map_err(failed)?;
        let path = folder.path(self.layer);
        fs::rename(&self.path, &path).map_err(|source| write_error(&path, source))?;
        Ok(States { shape: folder.shape, bytes })
    }
}

/// Of all that follows the header.
fn hash(bytes: &Region) -> u64 {
    let mut hash = Xxh3::new();
    for chunk in bytes.get(HEADER..).unwrap_or_default().chunks(1 << 24) {
        hash.update(chunk);
        bytes.release();
    }
    hash.digest()
}

fn write_error(path: &Path, source: io::Error) -> Error {
    Error::WriteStates { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape =
        Shape { columns: 3, calibration: 4, held_out: 2, dense_calibration: true, float: FloatType::BF16 };

    fn written(folder: &Path) -> StatesFolder {
        let folder = StatesFolder::new(folder.to_owned(), SHAPE);
        let mut states = folder.create(7).unwrap();
        states.add(Section::HeldOut, &[0.1; 6]).unwrap();
        states.add(Section::Calibration, &[1.0, 2.0, 3.001]).unwrap();
        states.add(Section::Calibration, &[-1.0; 9]).unwrap();
        states.add(Section::DenseHeldOut, &[0.3; 6]).unwrap();
        states.add(Section::DenseCalibration, &[0.5; 12]).unwrap();
        states.finish().unwrap();
        folder
    }

    #[test]
    fn rows_come_back_as_they_are_kept() {
        let place = tempfile::tempdir().unwrap();
        let states = written(place.path()).open(7).unwrap().unwrap();
        assert_eq!(states.read(Section::Calibration, 0..2).as_slice(), [1.0, 2.0, 3.0, -1.0, -1.0, -1.0]);
        assert_eq!(states.read(Section::HeldOut, 1..2).as_slice(), [0.1; 3]);
        assert_eq!(states.read(Section::DenseCalibration, 3..4).as_slice(), [0.5; 3]);
        assert_eq!(states.read(Section::DenseHeldOut, 0..2).as_slice(), [0.3; 6]);
    }

    #[test]
    fn another_layers_states_or_changed_ones_are_none() {
        let place = tempfile::tempdir().unwrap();
        let folder = written(place.path());
        assert!(folder.open(6).unwrap().is_none());
        let path = folder.path(7);
        let bytes = fs::read(&path).unwrap();
        for at in [0, 17, 40, HEADER, bytes.len() - 1] {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            fs::write(&path, changed).unwrap();
            assert!(folder.open(7).unwrap().is_none(), "byte {at}");
        }
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(folder.open(7).unwrap().is_none());
        fs::write(&path, bytes).unwrap();
        assert!(folder.open(7).unwrap().is_some());
        folder.remove_before(8).unwrap();
        assert!(folder.open(7).unwrap().is_none());
    }
}
