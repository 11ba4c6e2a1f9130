//! One tensor's bytes on their way into the output, in the order of its rows, and what is recorded of them.

use bitmill_checkpoint::quant_state;
use bitmill_quant::{
    awq_codes, awq_zero_points, gptq_zero_points, pack_zero_points, pack_zero_words, transpose, words_of_rows,
};
use bitmill_tensor::{ColumnPacking, Element, Encoding, Grouped, ScaleType, Scaled, WeightData, ZeroPoint};
use xxhash_rust::xxh3::Xxh3;

use crate::calibrated::{RuntimeScales, StoredScale, six_digits};
use crate::compress::TensorRecord;
use crate::encode::ScaleBase;
use crate::error::Error;
use crate::layout::Output;
use crate::plan::{PlannedTensor, made_of};
use crate::tensor_run::Encoded;

/// A tensor of which some rows are written.
pub(crate) struct TensorWrite<'a> {
    planned: &'a PlannedTensor,
    /// Its number in the plan.
    index: usize,
    /// Bytes written of codes and of scales.
    offsets: [u64; 2],
    /// Held until the end: zero points are packed along the rows.
    zero_codes: Vec<u8>,
    /// Codes and scales, held where the output has them column by column.
    held: [Vec<u8>; 2],
    /// The group of each column, where they are not in order.
    group_of: Option<Vec<u32>>,
    /// Where each row's kept weights begin.
    row_offsets: Vec<u8>,
    kept: usize,
    /// Of the source's rows.
    source: Xxh3,
    stored: StoredHash,
    squared_error: f64,
    squared_norm: f64,
    zeros: u64,
}

impl<'a> TensorWrite<'a> {
    pub fn new(planned: &'a PlannedTensor, index: usize) -> Self {
        Self {
            planned,
            index,
            offsets: [0; 2],
            zero_codes: Vec::new(),
            held: [Vec::new(), Vec::new()],
            group_of: None,
            row_offsets: Vec::new(),
            kept: 0,
            source: Xxh3::new(),
            stored: StoredHash::default(),
            squared_error: 0.0,
            squared_norm: 0.0,
            zeros: 0,
        }
    }

    /// Writes the next rows.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn add(&mut self, output: &Output<'_>, encoded: &Encoded) -> Result<(), Error> {
        let parts = &encoded.parts;
        for &kept in &parts.kept {
            self.row_offsets.extend((self.kept as i64).to_le_bytes());
            self.kept += kept;
        }
        let packing = output.packing();
        let is_held = packing.is_some_and(|packing| packing != ColumnPacking::Words)
            && matches!(self.planned.to, Encoding::Grouped(_));
        let in_words = match (packing, self.planned.to) {
            (Some(ColumnPacking::Words), Encoding::Grouped(grouped)) => {
                Some(words_of_rows(&parts.codes, self.planned.in_features(), grouped.bits))
            }
            _ => None,
        };
        let codes = in_words.as_ref().unwrap_or(&parts.codes);
        for (part, bytes) in [codes, &parts.scales].into_iter().enumerate() {
            if is_held {
                self.held[part].extend_from_slice(bytes);
            } else if !bytes.is_empty() {
                output.write_at(self.index, part, self.offsets[part], bytes)?;
                self.offsets[part] += bytes.len() as u64;
                self.stored.add(part, bytes);
            }
        }
        self.zero_codes.extend_from_slice(&parts.zero_codes);
        if self.group_of.is_none() {
            self.group_of.clone_from(&parts.group_of);
        }
        for row in &encoded.rows {
            self.source.update(&row.hash.to_le_bytes());
            self.squared_error += row.squared_error;
            self.squared_norm += row.squared_norm;
            self.zeros += row.zeros;
        }
        Ok(())
    }

    /// Writes what follows from all rows; `base` is what scales of small numbers are read with, `runtime` what runtimes divide by
    /// beside.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn finish(
        mut self,
        output: &Output<'_>,
        base: &ScaleBase,
        runtime: RuntimeScales,
    ) -> Result<TensorRecord, Error> {
        match (output.packing(), self.planned.to) {
            (Some(packing), Encoding::Grouped(grouped)) if packing != ColumnPacking::Words => {
                self.finish_columns(output, packing, &grouped)?;
            }
            (_, Encoding::Grouped(_) | Encoding::Sparse { .. }) => self.finish_rows(output)?,
            (_, Encoding::Scaled(layout)) => self.finish_scaled(output, &layout, base)?,
            _ => {}
        }
        let bytes = |StoredScale { value, float }: StoredScale| {
            let mut bytes = vec![0; float.size_bytes()];
            float.write(value, &mut bytes);
            bytes
        };
        let RuntimeScales { inputs, cache } = runtime;
        let scales: Vec<Vec<u8>> = inputs.into_iter().chain(cache).map(bytes).collect();
        output.write_scales(self.index, &scales)?;
        let told = |scale: Option<StoredScale>| scale.map(|scale| six_digits(f64::from(scale.value)));
        let planned = self.planned;
        let relative_error =
            if self.squared_norm > 0.0 { (self.squared_error / self.squared_norm).sqrt() } else { 0.0 };
        Ok(TensorRecord {
            name: planned.name.clone(),
            from: planned.from.to_string(),
            to: planned.to.to_string(),
            bytes: planned.bytes_after,
            relative_error,
            source: (planned.source != planned.name).then(|| planned.source.clone()),
            source_shape: planned.is_padded().then(|| planned.source_shape.clone()),
            zeros: planned.removal.map(|_| self.zeros),
            source_hash: format!("{:016x}", self.source.digest()),
            stored_hash: self.stored.finish(planned.to),
            method: None,
            cache_scale: told(cache),
            input_scale: told(inputs),
            outliers: planned.outliers.clone(),
            reason: planned.reason.clone(),
        })
    }
}

impl TensorWrite<'_> {
    /// Writes shape, zero points and row offsets.
    fn finish_rows(&mut self, output: &Output<'_>) -> Result<(), Error> {
        let (rows, cols) = (self.planned.out_features(), self.planned.in_features());
        let last = match self.planned.to {
            Encoding::Grouped(grouped) if !self.zero_codes.is_empty() => {
                let pack = match output.packing() {
                    Some(ColumnPacking::Words) => pack_zero_words,
                    _ => pack_zero_points,
                };
                pack(&self.zero_codes, rows, grouped.groups_per_row(cols), grouped.bits)
            }
            _ => std::mem::take(&mut self.row_offsets),
        };
        let shape: Vec<u8> = [rows, cols].iter().flat_map(|&n| (n as i64).to_le_bytes()).collect();
        output.write_at(self.index, 2, 0, &shape)?;
        if !last.is_empty() {
            output.write_at(self.index, 3, 0, &last)?;
            self.stored.add(2, &last);
        }
        Ok(())
    }

    /// Writes what scales are read with.
    fn finish_scaled(&mut self, output: &Output<'_>, layout: &Scaled, base: &ScaleBase) -> Result<(), Error> {
        if layout.scale == ScaleType::Fp8 {
            output.write_at(self.index, 2, 0, &base.global.to_le_bytes())?;
            self.stored.add(2, &base.global.to_le_bytes());
        }
        let Element::Listed(list) = layout.element else { return Ok(()) };
        let map: Vec<u8> = list.values().iter().flat_map(|value| value.to_le_bytes()).collect();
        output.write_at(self.index, 2, 0, &map)?;
        let (rows, cols) = (self.planned.out_features(), self.planned.in_features());
        let nested = base.nested.as_deref();
        let made_of = made_of(self.planned);
        let state =
            quant_state(layout, list, made_of, rows, cols, nested.map_or(0.0, |nested| nested.offset));
        output.write_at(self.index, 3, 0, &state)?;
        if let Some(nested) = nested {
            output.write_at(self.index, 4, 0, &nested.absmax)?;
            output.write_at(self.index, 5, 0, nested.as_nested().map)?;
            for bytes in [&nested.absmax, nested.as_nested().map, &nested.offset.to_le_bytes()] {
                self.stored.add(2, bytes);
            }
        }
        Ok(())
    }

    /// Turns all that was held into columns and writes it.
    fn finish_columns(
        &mut self,
        output: &Output<'_>,
        packing: ColumnPacking,
        grouped: &Grouped,
    ) -> Result<(), Error> {
        let (rows, cols) = (self.planned.out_features(), self.planned.in_features());
        let groups = grouped.groups_per_row(cols);
        if grouped.zero_point == ZeroPoint::Symmetric {
            self.zero_codes.resize(rows * groups, 1 << (grouped.bits.get() - 1));
        }
        let [codes, scales] = std::mem::take(&mut self.held);
        let codes = match packing.is_gptq() {
            true => transpose(&codes, rows, grouped.words_per_row(cols), 4),
            false => awq_codes(&codes, rows, cols),
        };
        let zeros = match packing.is_gptq() {
            true => gptq_zero_points(&self.zero_codes, rows, groups, grouped.bits, packing),
            false => awq_zero_points(&self.zero_codes, rows, groups),
        };
        let scales = transpose(&scales, rows, groups, grouped.scale.size_bytes());
        for (part, bytes) in [codes, scales, zeros].into_iter().enumerate() {
            output.write_at(self.index, part, 0, &bytes)?;
            self.stored.add(part, &bytes);
        }
        if packing.is_gptq() {
            let in_order = (0..cols).map(|column| (column / grouped.group_size) as u32);
            let own = self.group_of.take().filter(|own| !own.iter().copied().eq(in_order.clone()));
            let is_own = own.is_some();
            let group_of = own.unwrap_or_else(|| in_order.collect());
            let bytes: Vec<u8> = group_of.iter().flat_map(|group| group.to_le_bytes()).collect();
            output.write_at(self.index, 3, 0, &bytes)?;
            if is_own {
                self.stored.add(2, &bytes);
            }
        }
        Ok(())
    }
}

/// A hash of what is stored of a tensor: xxh3 of its bytes, or of the hashes of its parts where it has several.
#[derive(Default)]
pub(crate) struct StoredHash([Xxh3; 3]);

impl StoredHash {
    /// Adds the next bytes of a part. 0: weights, codes or kept values; 1: scales or bits; 2: zero points, row offsets or
    /// what scales are read with, then the groups of columns that are not in order.
    pub fn add(&mut self, part: usize, bytes: &[u8]) {
        self.0[part].update(bytes);
    }

    pub fn finish(&self, encoding: Encoding) -> String {
        let [first, second, third] = self.0.each_ref().map(Xxh3::digest);
        let hash = match encoding {
            Encoding::Float(_) | Encoding::Block(_) => first,
            Encoding::Grouped(_) | Encoding::Scaled(_) | Encoding::Sparse { .. } => {
                let mut all = Xxh3::new();
                [first, second, third].iter().for_each(|hash| all.update(&hash.to_le_bytes()));
                all.digest()
            }
        };
        format!("{hash:016x}")
    }
}

/// What is stored, in pieces, with the number of the part that [`StoredHash::add`] knows each by.
pub(crate) fn stored_parts<'a>(data: &WeightData<'a>) -> [(usize, &'a [u8]); 4] {
    let [first, second, third, more]: [&[u8]; 4] = match *data {
        WeightData::Float { bytes, .. } | WeightData::Block { bytes, .. } => [bytes, &[], &[], &[]],
        WeightData::Grouped { packed, scales, zero_points, .. } => [packed, scales, zero_points, &[]],
        WeightData::Columns { packed, scales, zero_points, group_of, .. } => {
            [packed, scales, zero_points, group_of]
        }
        WeightData::Scaled { codes, scales, nested: Some(nested), .. } => {
            [codes, scales, nested.absmax, nested.map]
        }
        WeightData::Scaled { codes, scales, .. } => [codes, scales, &[], &[]],
        WeightData::Sparse { bitmask, values, row_offsets, .. } => [values, bitmask, row_offsets, &[]],
    };
    [(0, first), (1, second), (2, third), (2, more)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitmill_checkpoint::{Checkpoint, Identity, Overwrite, Target};
    use bitmill_kernels::Isa;
    use bitmill_testkit::{Variant, tiny};

    use crate::read_back::read_back;
    use crate::source::Source;
    use crate::tensor_run::TensorRun;
    use crate::{Format, Plan, PlanOptions, Silent};

    #[test]
    fn columns_that_are_not_in_the_order_of_their_groups_are_written_with_them() {
        let (source, out) = (tiny(Variant::Qwen2), tempfile::tempdir().unwrap());
        let checkpoint = Checkpoint::open(source.path()).unwrap();
        let recipe = crate::preset("w4a16_g32").unwrap().with_format(Format::Gptq).unwrap();
        let plan = Plan::new(&checkpoint, &recipe, &PlanOptions::default()).unwrap();
        let path = out.path().join("m");
        let target = Target { path: path.clone(), overwrite: Overwrite::Refuse };
        let output = plan.layout.resume(&target, vec!["m.json".into()], Identity::default()).unwrap();
        let mut records = Vec::new();
        for (index, planned) in plan.tensors.iter().enumerate() {
            let source = Source::new(&checkpoint, &plan);
            let opened = source.open(Isa::best(), planned).unwrap();
            let run = TensorRun::new(&source, planned, &opened, Isa::best()).unwrap();
            let mut write = TensorWrite::new(planned, index);
            let last_first = || (0..planned.in_features()).rev().map(|column| (column / 32) as u32).collect();
            for mut encoded in run.encode(0, planned.out_features()).unwrap() {
                encoded.parts.group_of = matches!(planned.to, Encoding::Grouped(_)).then(last_first);
                write.add(&output, &encoded).unwrap();
            }
            records.push(write.finish(&output, run.base(), RuntimeScales::default()).unwrap());
        }
        read_back(&output.staged(), &path, &plan, &records, &Silent).unwrap();
        output.finish().unwrap();
        let down = Checkpoint::open(&path).unwrap().tensor("model.layers.0.mlp.down_proj.weight").unwrap();
        let WeightData::Columns { group_of, .. } = down.view().data() else { panic!("columns") };
        // 160 columns are five groups of 32.
        assert_eq!((&group_of[..4], &group_of[4 * 159..]), (&[4, 0, 0, 0][..], &[0, 0, 0, 0][..]));
    }
}
