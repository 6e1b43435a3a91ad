//! Registers to slots. PTX names a new register for nearly every value, thousands in an unrolled kernel; those that never
//! hold a value at the same time share a slot, so that a warp's registers stay in the cache.
//!
//! Liveness over the control-flow graph gives each register the range of instructions over which its value may still be read;
//! a linear scan hands out slots to ranges that do not touch. A register that may be read before it is written
//! keeps a slot for itself: its lanes without a value must stay so. Constants keep theirs too.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
};

use crate::kernel::{Call, Callee, File, Function, Inst, Kernel, Op, Reg};

/// Words of the bit sets of all blocks beyond which registers are left as they are.
const BITS: usize = 1 << 24;

/// What an instruction does with a register.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Use,
    /// Writes every lane that executes the instruction.
    Define,
    /// Writes some of them.
    Touch,
}

/// Lets registers of the 32-bit and 64-bit files share slots.
pub(super) fn allocate(kernel: &mut Kernel) {
    for file in [File::W, File::D] {
        if let Some(slots) = Slots::of(kernel, file) {
            slots.apply(kernel, file);
        }
    }
}

/// The new place of every register of a file.
struct Slots {
    place: Vec<u32>,
    count: u32,
}

impl Slots {
    fn of(kernel: &mut Kernel, file: File) -> Option<Slots> {
        let (count, presets) = match file {
            File::W => (kernel.words as usize, &kernel.preset_words),
            _ => (kernel.doubles as usize, &kernel.preset_doubles),
        };
        let fixed: BTreeSet<u32> = presets.iter().map(|(register, _)| *register).collect();
        let blocks = Blocks::of(kernel);
        let words = count.div_ceil(64);
        if blocks.begins.len().checked_mul(2 * words)? > BITS {
            return None;
        }
        let live = blocks.live_in(kernel, file, words);
        // From where to where each register holds a value that may still be read.
        let code = kernel.code.len() as u32;
        let mut ranges = vec![(u32::MAX, 0); count];
        let extend = |ranges: &mut Vec<(u32, u32)>, register: usize, at: u32| {
            let range = &mut ranges[register];
            *range = (range.0.min(at), range.1.max(at));
        };
        for (block, begin) in blocks.begins.iter().enumerate() {
            let end = blocks.end(block, code);
            for register in ones(&live[block]) {
                extend(&mut ranges, register, *begin);
            }
            for next in &blocks.successors[block] {
                for register in ones(&live[*next as usize]) {
                    extend(&mut ranges, register, end - 1);
                }
            }
        }
        for (pc, inst) in kernel.code.iter_mut().enumerate() {
            registers(inst, file, &mut |register, _| extend(&mut ranges, *register as usize, pc as u32));
        }
        for register in ones(&live[0]) {
            ranges[register] = (0, code);
        }
        // The scan: constants first, then ranges by their beginning.
        let mut place = vec![0; count];
        let mut next = 0;
        for register in &fixed {
            place[*register as usize] = next;
            next += 1;
        }
        let mut order: Vec<u32> = (0..count as u32)
            .filter(|register| !fixed.contains(register) && ranges[*register as usize].0 != u32::MAX)
            .collect();
        order.sort_by_key(|register| ranges[*register as usize]);
        let mut taken: BinaryHeap<Reverse<(u32, u32)>> = BinaryHeap::new();
        let mut free: Vec<u32> = vec![];
        for register in order {
            let (begin, end) = ranges[register as usize];
            while let Some(Reverse((last, slot))) = taken.peek().copied() {
                if last >= begin {
                    break;
                }
                taken.pop();
                free.push(slot);
            }
            let slot = free.pop().unwrap_or_else(|| {
                next += 1;
                next - 1
            });
            place[register as usize] = slot;
            taken.push(Reverse((end, slot)));
        }
        Some(Slots { place, count: next })
    }

    fn apply(&self, kernel: &mut Kernel, file: File) {
        for inst in &mut kernel.code {
            registers(inst, file, &mut |register, _| *register = self.place[*register as usize]);
        }
        for register in &mut kernel.reads {
            match (register, file) {
                (Reg::W(i), File::W) | (Reg::D(i), File::D) => *i = self.place[*i as usize],
                _ => {}
            }
        }
        let (presets, count) = match file {
            File::W => (&mut kernel.preset_words, &mut kernel.words),
            _ => (&mut kernel.preset_doubles, &mut kernel.doubles),
        };
        for (register, _) in presets {
            *register = self.place[*register as usize];
        }
        *count = self.count;
    }
}

/// Basic blocks and what may follow each.
struct Blocks {
    begins: Vec<u32>,
    successors: Vec<Vec<u32>>,
}

impl Blocks {
    fn of(kernel: &Kernel) -> Blocks {
        let code = &kernel.code;
        let mut leaders = BTreeSet::from([0]);
        for routine in &kernel.routines {
            leaders.insert(routine.entry);
        }
        for (pc, inst) in code.iter().enumerate() {
            let next = pc as u32 + 1;
            match &inst.op {
                Op::Branch { target } => leaders.extend([*target, next]),
                Op::BranchTable { targets, .. } => {
                    leaders.extend(targets);
                    leaders.insert(next);
                }
                Op::Call(_) | Op::Return | Op::Exit | Op::Trap => {
                    leaders.insert(next);
                }
                _ => {}
            }
        }
        leaders.retain(|pc| (*pc as usize) < code.len());
        let begins: Vec<u32> = leaders.into_iter().collect();
        // Where each function may return to: behind every call of it, and of one that is known only when it runs.
        let mut returns: Vec<Vec<u32>> = vec![vec![]; kernel.routines.len()];
        for (pc, inst) in code.iter().enumerate() {
            if let Op::Call(call) = &inst.op {
                let next = pc as u32 + 1;
                match call.callee {
                    Callee::Function(routine) => returns[routine].push(next),
                    Callee::Register(_) => returns.iter_mut().for_each(|r| r.push(next)),
                    Callee::Builtin(_) => {}
                }
            }
        }
        let mut blocks = Blocks { begins, successors: vec![] };
        for block in 0..blocks.begins.len() {
            let last = blocks.end(block, code.len() as u32) - 1;
            let inst = &code[last as usize];
            let mut next = vec![];
            let mut falls = true;
            match &inst.op {
                Op::Branch { target } => {
                    next.push(*target);
                    falls = inst.guard.is_some();
                }
                Op::BranchTable { targets, .. } => {
                    next.extend(targets);
                    falls = inst.guard.is_some();
                }
                Op::Exit => falls = inst.guard.is_some(),
                Op::Return => {
                    falls = inst.guard.is_some();
                    // Functions stand one after another; the last that begins before this is its own.
                    let own = (0..kernel.routines.len())
                        .filter(|r| kernel.routines[*r].entry <= last)
                        .max_by_key(|r| kernel.routines[*r].entry);
                    if let Some(own) = own {
                        next.extend(&returns[own]);
                    }
                }
                Op::Call(call) => match call.callee {
                    Callee::Function(routine) => next.push(kernel.routines[routine].entry),
                    Callee::Register(_) => next.extend(kernel.routines.iter().map(|r| r.entry)),
                    Callee::Builtin(_) => {}
                },
                _ => {}
            }
            if falls {
                next.push(last + 1);
            }
            next.retain(|pc| (*pc as usize) < code.len());
            let successors = next.iter().map(|pc| blocks.containing(*pc)).collect();
            blocks.successors.push(successors);
        }
        blocks
    }

    /// The block that begins at or before an instruction.
    fn containing(&self, pc: u32) -> u32 {
        (self.begins.partition_point(|begin| *begin <= pc) - 1) as u32
    }

    fn end(&self, block: usize, code: u32) -> u32 {
        self.begins.get(block + 1).copied().unwrap_or(code)
    }

    /// For each block the registers whose values it, or what follows it, may read before they are written.
    fn live_in(&self, kernel: &mut Kernel, file: File, words: usize) -> Vec<Vec<u64>> {
        let code = kernel.code.len() as u32;
        let blocks = self.begins.len();
        let mut used = vec![vec![0u64; words]; blocks];
        let mut written = vec![vec![0u64; words]; blocks];
        for block in 0..blocks {
            for pc in self.begins[block]..self.end(block, code) {
                let inst = &mut kernel.code[pc as usize];
                let always = inst.guard.is_none();
                // An instruction reads before it writes.
                for reading in [true, false] {
                    registers(inst, file, &mut |register, role| {
                        let (word, bit) = (*register as usize / 64, 1 << (*register % 64));
                        // What is written in some lanes only keeps its value in the others.
                        let reads = role != Role::Define || !always;
                        if reading && reads && written[block][word] & bit == 0 {
                            used[block][word] |= bit;
                        }
                        if !reading && role == Role::Define && always {
                            written[block][word] |= bit;
                        }
                    });
                }
            }
        }
        let mut live = used.clone();
        let mut before: Vec<Vec<u32>> = vec![vec![]; blocks];
        for (block, successors) in self.successors.iter().enumerate() {
            for next in successors {
                before[*next as usize].push(block as u32);
            }
        }
        let mut queue: Vec<u32> = (0..blocks as u32).collect();
        let mut queued = vec![true; blocks];
        while let Some(block) = queue.pop() {
            queued[block as usize] = false;
            for previous in &before[block as usize] {
                let previous = *previous as usize;
                let mut changed = false;
                for word in 0..words {
                    let through = live[block as usize][word] & !written[previous][word];
                    changed |= through & !live[previous][word] != 0;
                    live[previous][word] |= through;
                }
                if changed && !queued[previous] {
                    queued[previous] = true;
                    queue.push(previous as u32);
                }
            }
        }
        live
    }
}

fn ones(words: &[u64]) -> impl Iterator<Item = usize> {
    words.iter().enumerate().flat_map(|(i, word)| {
        let mut word = *word;
        std::iter::from_fn(move || {
            (word != 0).then(|| {
                let bit = word.trailing_zeros() as usize;
                word &= word - 1;
                i * 64 + bit
            })
        })
    })
}

/// Every register of a file that an instruction names.
fn registers(inst: &mut Inst, file: File, visit: &mut dyn FnMut(&mut u32, Role)) {
    use Role::*;
    let mut word = |register: &mut u32, role: Role, of: File| {
        if of == file {
            visit(register, role);
        }
    };
    macro_rules! w {
        ($role:expr; $($register:expr),*) => {{ $(word($register, $role, File::W);)* }};
    }
    macro_rules! any {
        ($role:expr; $($register:expr),*) => {{
            $(match $register {
                Reg::W(i) => word(i, $role, File::W),
                Reg::D(i) => word(i, $role, File::D),
                Reg::P(_) | Reg::Sink => {}
            })*
        }};
    }
    macro_rules! sources {
        ($f:expr, $s:expr) => {{
            let f: &Function = $f;
            for (source, of) in $s.iter_mut().zip(f.signature().1) {
                word(source, Use, *of);
            }
        }};
    }
    match &mut inst.op {
        Op::Apply { f, d, s } => {
            sources!(f, s);
            word(d, Define, f.signature().0);
        }
        Op::Convert { d, a, b, .. } => {
            any!(Use; a, b);
            any!(Define; d);
        }
        Op::Carry { f, d, s, .. } => {
            let of = if matches!(f, crate::kernel::Carry::W(_)) { File::W } else { File::D };
            for source in s {
                word(source, Use, of);
            }
            word(d, Define, of);
        }
        Op::MoveW { d, a } | Op::MoveMatrix { d, a } => {
            w!(Use; a);
            w!(Define; d);
        }
        Op::MoveD { d, a } => {
            word(a, Use, File::D);
            word(d, Define, File::D);
        }
        Op::SelectW { d, a, b, .. } => {
            w!(Use; a, b);
            w!(Define; d);
        }
        Op::SelectD { d, a, b, .. } => {
            word(a, Use, File::D);
            word(b, Use, File::D);
            word(d, Define, File::D);
        }
        Op::Pack { d, parts, .. } => {
            parts.iter_mut().for_each(|part| any!(Use; part));
            any!(Define; d);
        }
        Op::Unpack { parts, a, .. } => {
            any!(Use; a);
            parts.iter_mut().for_each(|part| any!(Define; part));
        }
        Op::SetP { f, s, .. } => sources!(f, s),
        Op::SetP2 { low, s, .. } => sources!(low, s),
        Op::Set { f, d, s, .. } => {
            sources!(f, s);
            w!(Define; d);
        }
        Op::Set2 { low, d, s, .. } => {
            sources!(low, s);
            w!(Define; d);
        }
        Op::Clock { d } => any!(Define; d),
        Op::Activemask { d } => w!(Define; d),
        Op::ToGeneric { d, a, .. } | Op::FromGeneric { d, a, .. } => {
            any!(Use; a);
            any!(Define; d);
        }
        Op::IsSpace { a, .. } => any!(Use; a),
        Op::Load { access, d, .. } => {
            any!(Use; &mut access.address.base);
            d.iter_mut().for_each(|d| any!(Define; d));
        }
        Op::Store { access, s } => {
            any!(Use; &mut access.address.base);
            s.iter_mut().for_each(|s| any!(Use; s));
        }
        Op::Atomic { access, d, b, c, .. } => {
            any!(Use; &mut access.address.base);
            b.iter_mut().chain(c).for_each(|b| any!(Use; b));
            // An atomic out of bounds returns nothing.
            d.iter_mut().for_each(|d| any!(Touch; d));
        }
        Op::Shuffle { d, a, b, c, mask, .. } => {
            w!(Use; a, b, c, mask);
            w!(Define; d);
        }
        Op::Vote { d, mask, .. } | Op::Elect { d, mask, .. } => {
            w!(Use; mask);
            any!(Define; d);
        }
        Op::Match { d, a, mask, .. } => {
            any!(Use; a);
            w!(Use; mask);
            w!(Define; d);
        }
        Op::Reduce { d, a, mask, .. } => {
            w!(Use; a, mask);
            w!(Define; d);
        }
        Op::SyncWarp { mask } => w!(Use; mask),
        Op::Barrier(barrier) => {
            any!(Use; &mut barrier.id);
            barrier.threads.iter_mut().for_each(|threads| any!(Use; threads));
            any!(Touch; &mut barrier.output);
        }
        Op::CopyAsync { shared, global, size, .. } => {
            any!(Use; &mut shared.base, &mut global.base);
            size.iter_mut().for_each(|size| w!(Use; size));
        }
        Op::LoadMatrix { address, d, .. } => {
            any!(Use; &mut address.base);
            d.iter_mut().for_each(|d| w!(Define; d));
        }
        Op::StoreMatrix { address, s, .. } => {
            any!(Use; &mut address.base);
            s.iter_mut().for_each(|s| w!(Use; s));
        }
        Op::Mma { d, a, b, c, .. } => {
            a.iter_mut().chain(b).chain(c).for_each(|r| w!(Use; r));
            d.iter_mut().for_each(|d| w!(Define; d));
        }
        Op::MmaD { d, a, b, c, .. } => {
            a.iter_mut().chain(b).chain(c).for_each(|r| word(r, Use, File::D));
            d.iter_mut().for_each(|d| word(d, Define, File::D));
        }
        Op::BranchTable { index, .. } => w!(Use; index),
        Op::Call(call) => {
            let Call { callee, .. } = &mut **call;
            if let Callee::Register(register) = callee {
                word(register, Use, File::D);
            }
        }
        Op::MoveP { .. }
        | Op::LogicP { .. }
        | Op::Fence { .. }
        | Op::Hint
        | Op::CommitGroup
        | Op::WaitGroup { .. }
        | Op::Branch { .. }
        | Op::Return
        | Op::Exit
        | Op::Trap
        | Op::Breakpoint
        | Op::Sleep
        | Op::LaunchDependents
        | Op::GridWait => {}
    }
}
