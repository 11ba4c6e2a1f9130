//! Learned rounding against auto-round's own grids and torch's gradients (`tests/golden/learned.json` says which,
//! `tools/golden/learned.py` makes them).

use bitmill_quant::{Clip, Learned, Ranges};
use bitmill_tensor::{Bits, FloatType, Grouped, ZeroPoint};
use bitmill_testkit::{Golden, assert_close};

const STEPS: u16 = 40;

#[test]
fn every_step_is_that_of_auto_round() {
    let golden = Golden::open("tests/golden/learned.safetensors");
    let (weight, x) = (golden.f32("weight"), golden.f32("x"));
    let n = golden.shape("weight")[1];
    for (name, zero_point) in [("symmetric", ZeroPoint::Symmetric), ("asymmetric", ZeroPoint::Asymmetric)] {
        for bits in [2, 3, 4] {
            let grid = Grouped {
                bits: Bits::new(bits).unwrap(),
                group_size: 32.try_into().unwrap(),
                zero_point,
                scale: FloatType::F32,
            };
            let mut learned = Learned::new(&grid, Clip::None, Ranges::Learned, weight.clone(), n).unwrap();
            let (mut decided, mut losses) = (vec![0.0; weight.len()], Vec::new());
            for step in 0..=STEPS {
                for (row, out) in decided.chunks_exact_mut(n).enumerate() {
                    learned.decide(row, out);
                }
                let mut of = vec![0.0; weight.len()];
                let mut loss = 0.0;
                let rows = weight.chunks_exact(n).zip(decided.chunks_exact(n)).zip(of.chunks_exact_mut(n));
                for ((weight, decided), of) in rows {
                    for x in x.chunks_exact(n) {
                        let moved: f32 =
                            weight.iter().zip(decided).zip(x).map(|((w, d), x)| (d - w) * x).sum();
                        loss += moved * moved / 2.0;
                        of.iter_mut().zip(x).for_each(|(of, x)| *of += moved * x);
                    }
                }
                losses.push(loss);
                let rate = (1.0 - f32::from(step) / f32::from(STEPS)) / f32::from(STEPS);
                learned.step(|row, out| out.copy_from_slice(&of[row * n..(row + 1) * n]), rate);
            }
            let reason = format!("{name}, {bits} bits: f32 sums in another order");
            assert_close(&losses, &golden.f32(&format!("{name}/{bits}/losses")), 1e-4, &reason);
            assert_close(&decided, &golden.f32(&format!("{name}/{bits}/decided")), 1e-5, &reason);
        }
    }
}
