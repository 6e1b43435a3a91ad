//! Tensor cores: ldmatrix, stmatrix, movmatrix, mma.sync.

use super::{Context, access::Touch, cta::Env, warp::Warp};
use crate::{
    kernel::{Inst, Op, Reg},
    parse::Space,
};

impl Warp {
    /// ldmatrix and stmatrix: lanes 8i to 8i + 7 give the addresses of matrix i's rows of 16 bytes.
    pub(super) fn matrix_access<const CHECKED: bool>(
        &mut self,
        context: &Context,
        env: &mut Env,
        pc: u32,
        inst: &Inst,
        lanes: u32,
    ) {
        let (address, registers, transposed, load) = match &inst.op {
            Op::LoadMatrix { address, d, transposed } => (address, d, *transposed, true),
            Op::StoreMatrix { address, s, transposed } => (address, s, *transposed, false),
            _ => return,
        };
        let mut out = [[0u32; 32]; 4];
        for (i, register) in registers.iter().enumerate() {
            let mut rows = [None; 8];
            for (r, row) in rows.iter_mut().enumerate() {
                let lane = i * 8 + r;
                let at = self.address(address, lane);
                let what = if load { "reads" } else { "writes" };
                *row = self.place(context, env, pc, lane, Space::Shared, at, 16, what).map(|(_, at)| at);
            }
            env.own.outcome.counters.matrix_phase(&rows);
            if CHECKED {
                for (r, at) in rows.iter().enumerate() {
                    let Some(at) = *at else { continue };
                    let touch = Touch { pc, lane: i * 8 + r, write: !load, strong: false };
                    if let Some(conflict) = self.touch(context, env, Space::Shared, at, 16, touch) {
                        self.race(context, env, Space::Shared, at, touch, conflict);
                    }
                }
            }
            // Element (r, c): lane 4r + c/2, its half c mod 2; transposed, r and c change places.
            if load {
                let mut whole = true;
                let mut words = [[u32::MAX; 4]; 8];
                for (words, at) in words.iter_mut().zip(rows) {
                    let Some(at) = at else { continue };
                    for (word, bytes) in
                        words.iter_mut().zip(env.own.shared.bytes[at..at + 16].chunks_exact(4))
                    {
                        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                    }
                }
                if transposed {
                    let element = |r: usize, c: usize| words[r][c / 2] >> (16 * (c % 2)) & 0xffff;
                    for (lane, out) in out[i].iter_mut().enumerate() {
                        let (r, c) = (2 * (lane % 4), lane / 4);
                        *out = element(r, c) | element(r + 1, c) << 16;
                    }
                } else {
                    // Two elements side by side are one word.
                    out[i].copy_from_slice(words.as_flattened());
                }
                if CHECKED {
                    whole = rows.iter().flatten().all(|at| env.own.shared.written.all(*at, 16));
                }
                if !whole {
                    self.mark_rows(env, &rows, *register, &out[i], transposed, lanes);
                    continue;
                }
                self.put_w(*register, &out[i], lanes);
            } else {
                let value = self.w[*register as usize];
                let set = self.w_set[*register as usize];
                for (lane, value) in value.iter().enumerate() {
                    for half in 0..2 {
                        let (r, c) = (lane / 4, 2 * (lane % 4) + half);
                        let (r, c) = if transposed { (c, r) } else { (r, c) };
                        let Some(at) = rows[r] else { continue };
                        let element = (value >> (16 * half)) as u16;
                        env.own.shared.write(at + 2 * c, &element.to_le_bytes(), set >> lane & 1 == 1);
                    }
                }
            }
        }
    }

    /// A matrix of which some elements were never written: only the lanes that hold those are without a value.
    #[cold]
    fn mark_rows(
        &mut self,
        env: &Env,
        rows: &[Option<usize>; 8],
        register: u32,
        value: &[u32; 32],
        transposed: bool,
        lanes: u32,
    ) {
        let mut set = 0u32;
        for lane in 0..32 {
            let written = (0..2).any(|half| {
                let (r, c) = (lane / 4, 2 * (lane % 4) + half);
                let (r, c) = if transposed { (c, r) } else { (r, c) };
                rows[r].is_none_or(|at| env.own.shared.written.all(at + 2 * c, 2))
            });
            set |= u32::from(written) << lane;
        }
        self.put_w(register, value, lanes);
        self.mark(Reg::W(register), lanes, set);
    }

    pub(super) fn matrix(&mut self, context: &Context, env: &mut Env, inst: &Inst, lanes: u32) {
        match &inst.op {
            Op::MoveMatrix { d, a } => {
                let source = self.w[*a as usize];
                let value = std::array::from_fn(|lane| {
                    let (r, c) = (lane / 4, 2 * (lane % 4));
                    let element = |row: usize, column: usize| {
                        source[row * 4 + column / 2] >> (16 * (column % 2)) & 0xffff
                    };
                    element(c, r) | element(c + 1, r) << 16
                });
                self.put_w(*d, &value, lanes);
            }
            Op::Mma { mma, d, a, b, c } => {
                let fragment = |registers: &[u32]| -> [[u32; 32]; 4] {
                    let mut out = [[0; 32]; 4];
                    for (out, register) in out.iter_mut().zip(registers) {
                        *out = self.w[*register as usize];
                    }
                    out
                };
                let (fa, fb, fc) = (fragment(a), fragment(b), fragment(c));
                let mut fd = [[0; 32]; 4];
                mma.run(context.exact, &fa[..a.len()], &fb[..b.len()], &fc[..c.len()], &mut fd[..d.len()]);
                for (register, value) in d.iter().zip(&fd) {
                    self.put_w(*register, value, lanes);
                }
                let (flop, useful) =
                    (2 * mma.multiply_adds(), 2 * mma.useful(&fa[..a.len()], &fb[..b.len()]));
                env.own.outcome.counters.tensor(mma.precision(), flop, useful);
            }
            Op::MmaD { mma, d, a, b, c } => {
                let fragment = |registers: &[u32]| -> Vec<[u64; 32]> {
                    registers.iter().map(|register| self.d[*register as usize]).collect()
                };
                let (fa, fb, fc) = (fragment(a), fragment(b), fragment(c));
                let mut fd = vec![[0; 32]; d.len()];
                mma.run_f64(&fa, &fb, &fc, &mut fd);
                for (register, value) in d.iter().zip(&fd) {
                    self.put_d(*register, value, lanes);
                }
                let flop = 2 * mma.multiply_adds();
                env.own.outcome.counters.tensor(mma.precision(), flop, flop);
            }
            _ => {}
        }
    }
}
