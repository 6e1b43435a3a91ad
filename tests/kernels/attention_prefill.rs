//! Attention of any number of rows over paged keys and values, against its definition in f64.

use warploom::{
    driver::{Buffer, View, ViewMut},
    kernels::{AttentionPrefillArgs, Dtype, PageLayout, PageTable, Rows, RowsMut},
    mask::{Mask, Pattern},
};

use super::{
    attention::{Case, Memory, PATTERNS, Run, Sequence, assert_same},
    harness::{Random, Rig, bits, encode, rig, rigs},
};

fn args<'b>(
    case: &Case,
    memory: &'b Memory,
    out: RowsMut<'b>,
    lse: Option<ViewMut<'b>>,
) -> AttentionPrefillArgs<'b> {
    AttentionPrefillArgs {
        dtype: case.dtype,
        tokens: case.tokens(),
        sequences: case.sequences.len(),
        heads: case.heads,
        q: memory.q(),
        out,
        lse,
        layout: memory.layout,
        k: memory.k.view(),
        v: memory.v.view(),
        table: memory.table(),
        slots: memory.given(case.slots, &memory.slots),
        lengths: memory.lengths.view(),
        offsets: memory.offsets.view(),
        positions: memory.given(case.positions, &memory.positions),
        max_rows: case.max_rows,
        max_keys: case.max_keys,
        mask: case.mask,
        documents: memory.given(case.documents, &memory.documents),
        scale: case.scale,
        softcap: case.softcap,
        sinks: memory.given(case.sinks.is_some(), &memory.sinks),
    }
}

/// `change` has the page table before the launch.
fn run_with(case: &Case, rig: &Rig, change: impl FnOnce(&mut Vec<i32>)) -> Run {
    case.run_with(rig, change, |memory, out, lse| {
        rig.kernels.attention_prefill.launch(&rig.stream, &args(case, memory, out, Some(lse)))
    })
}

fn run(case: &Case, rig: &Rig) -> Run {
    run_with(case, rig, |_| ())
}

fn check(case: &Case, rig: &Rig) -> Run {
    let run = run(case, rig);
    case.check(rig, &run);
    run
}

/// Every pattern, at every distance from the edges of windows, chunks and tiles, with and without a prefix.
#[test]
fn masks_at_every_edge() {
    let mut random = Random::new("prefill masks");
    let rig = rig();
    let widths = [(1, 0), (63, 1), (64, 0), (64, 64), (65, 63), (20, 65), (130, 5)];
    for pattern in PATTERNS {
        for (width, prefix) in widths {
            let mask = Mask { pattern: pattern(width), prefix };
            let mut case = Case::new(&mut random, Dtype::Bf16, 1, 1, 8, mask);
            // Whole prompts, the second ends with a tile; and rows after a context, one of them where a tile ends.
            case.add(&mut random, 200, 200).add(&mut random, 128, 128);
            case.add(&mut random, 193, 65).add(&mut random, 192, 1).add(&mut random, 0, 0);
            // Fewer keys than some prefixes.
            case.add(&mut random, 40, 12);
            check(&case, &rig);
        }
    }
}

/// Rows, heads, widths, pages, masks, and everything optional, drawn at random.
#[test]
fn any_shape() {
    let mut random = Random::new("prefill shapes");
    let rigs = rigs();
    let dims = [8, 40, 64, 72, 80, 96, 104, 128, 136, 200, 256];
    let groups = [(1, 1), (3, 1), (4, 2), (5, 1), (7, 1), (8, 1), (16, 1), (3, 3), (6, 2)];
    for i in 0..33 {
        let dtype = [Dtype::Bf16, Dtype::F16][i % 2];
        let (heads, kv_heads) = groups[i % groups.len()];
        let pattern = random.one_of(&PATTERNS)(random.range(1, 200));
        let mask = Mask { pattern, prefix: random.pick(&[0, 0, 1, 9, 70]) };
        let mut case = Case::new(&mut random, dtype, heads, kv_heads, dims[i % dims.len()], mask);
        // 300 packed rows are tiles and a part.
        let most_rows = [300 / heads, 1, 40, 140 / heads][i % 4];
        for _ in 0..random.range(1, 3) {
            let keys = random.range(0, 260);
            let rows = random.range(0, most_rows);
            case.add(&mut random, keys, rows);
        }
        case.page_size = random.pick(&[8, 16, 24, 64, 128, 336]);
        case.slots_first = random.pick(&[true, false]);
        case.slots = random.pick(&[true, false]);
        case.gap = random.pick(&[0, 8, 24]);
        case.max_keys += random.pick(&[0, 0, 1, 300]);
        case.max_rows += random.pick(&[0, 0, 5, 1000]);
        case.softcap = random.pick(&[0.0, 0.0, 2.0, 50.0]);
        case.scale *= random.pick(&[1.0, 1.0, 0.3, -1.0, 0.0]);
        case.sinks = random.pick(&[true, false]).then(|| random.normals(heads, 1.0, Dtype::F32));
        case.positions = random.pick(&[true, false]);
        case.documents = random.pick(&[true, false]);
        for s in &mut case.sequences {
            for row in &mut s.rows {
                if case.positions && random.range(0, 5) == 0 {
                    row.position = -1 - random.range(0, 3) as i32;
                }
                let any = random.range(0, s.keys.max(1)) as i32;
                row.document = random.pick(&[0, 0, -7, any]);
            }
        }
        check(&case, random.one_of(&rigs));
    }
}

/// Every entry under every delivery of copies and order of warps.
#[test]
fn any_order_of_events() {
    let mut random = Random::new("prefill events");
    for rig in rigs() {
        for (i, head_dim) in [64, 96, 128, 256, 64, 96, 128, 256].into_iter().enumerate() {
            let mask = Mask { pattern: Pattern::Window { keys: 150 }, prefix: 3 };
            let mut case = Case::new(&mut random, [Dtype::F16, Dtype::Bf16][i / 4], 3, 1, head_dim, mask);
            case.add(&mut random, 60, 60).add(&mut random, 420, 7);
            // Tiles whose rows see nothing: not even a key is waited for, but the rows are there.
            case.add(&mut random, 0, 50);
            case.positions = true;
            case.sequences[2].rows.iter_mut().for_each(|row| row.position = 5);
            check(&case, &rig);
        }
    }
}

/// A row has the same bits in a whole prompt, in any chunk of it, and alone: in another slot, other pages, and beside
/// others, though later keys have then been written.
#[test]
fn chunks_and_company_do_not_matter() {
    let mut random = Random::new("prefill exact");
    let rig = rig();
    let masks = ["full", "window:70+sinks:4", "chunk:65", "overlap:70"];
    for (i, (head_dim, heads)) in [(64, 3), (96, 1), (128, 2), (256, 1)].into_iter().enumerate() {
        let dtype = [Dtype::Bf16, Dtype::F16][i % 2];
        let mut prompt = Case::new(&mut random, dtype, heads, 1, head_dim, masks[i].parse().unwrap());
        prompt.add(&mut random, 300, 300);
        let whole = run(&prompt, &rig);
        let s = prompt.sequences[0].clone();
        let part = |keys: usize, rows: std::ops::Range<usize>| {
            let of = |x: &[f64]| x[..keys * head_dim].to_vec();
            Sequence { rows: s.rows[rows].to_vec(), k: of(&s.k), v: of(&s.v), keys }
        };
        let mut chunks = prompt.empty();
        chunks.add(&mut random, 190, 50);
        for rows in [0..97, 97..160, 160..161, 161..161, 161..300] {
            chunks.push(part(rows.end, rows));
        }
        chunks.add(&mut random, 10, 3);
        (chunks.slots, chunks.page_size, chunks.shuffle) = (true, 8, chunks.shuffle + 1);
        let run_of_chunks = run(&chunks, &rig);
        for row in 0..300 {
            let (a, b) = (prompt.row(&whole, row), prompt.row(&run_of_chunks, 50 + row));
            assert!(bits(a.0) == bits(b.0) && bits(a.1) == bits(b.1), "{prompt}: row {row} in a chunk");
        }
        for row in [0, 63, 64, 200, 299] {
            let mut alone = prompt.alone(0, row);
            (alone.page_size, alone.slots_first) = ([24, 64, 512][row % 3], true);
            let run = run(&alone, &rig);
            let (out, lse) = prompt.row(&whole, row);
            assert!(bits(&run.out) == bits(out) && bits(&run.lse) == bits(lse), "{prompt}: row {row} alone");
        }
    }
}

/// More sequences than a warp has lanes, of all lengths: every row is computed, and once.
#[test]
fn many_sequences() {
    let mut random = Random::new("prefill sequences");
    let rigs = rigs();
    for (sequences, longest) in [(2, 700), (33, 300), (90, 150)] {
        let mut case = Case::new(&mut random, Dtype::F16, 2, 1, 8, "window:9".parse().unwrap());
        for _ in 0..sequences {
            let any = random.range(0, longest);
            let rows = random.pick(&[0, 1, 64, 128, longest, any]);
            let context = random.pick(&[0, 0, 1, 1000]);
            case.add(&mut random, rows + context, rows);
        }
        // The last has the most keys of all.
        case.add(&mut random, longest + 1100, longest);
        let run = check(&case, random.one_of(&rigs));
        let Some(counters) = run.counters.first() else { continue };
        let tiles: usize = case.sequences.iter().map(|s| (2 * s.rows.len()).div_ceil(128)).sum();
        let most = tiles + case.sequences.len();
        assert!(counters.ctas as usize <= most, "{} CTAs for {tiles} tiles", counters.ctas);
        assert_eq!(counters.global_store.bytes as usize, case.tokens() * 2 * (8 * 2 + 4), "each row once");
    }
}

/// Documents that are packed into one sequence: a row sees its own alone, and tiles that no row of a tile sees are not
/// loaded.
#[test]
fn documents() {
    let mut random = Random::new("prefill documents");
    let rig = rig();
    let mut case = Case::new(&mut random, Dtype::Bf16, 2, 1, 64, Mask::CAUSAL);
    case.add(&mut random, 500, 500);
    let starts = [0, 1, 63, 64, 190, 256, 449];
    for (i, row) in case.sequences[0].rows.iter_mut().enumerate() {
        row.document = *starts.iter().rfind(|start| **start <= i as i32).unwrap();
    }
    case.documents = true;
    let together = check(&case, &rig);
    // Bits of a document of its own, where its keys lie alike in tiles.
    let s = &case.sequences[0];
    let of = |x: &[f64]| x[256 * 64..449 * 64].to_vec();
    let mut rows = s.rows[256..449].to_vec();
    (0..).zip(&mut rows).for_each(|(i, row)| (row.position, row.document) = (i, 0));
    let mut alone = case.empty();
    alone.push(Sequence { rows, k: of(&s.k), v: of(&s.v), keys: 193 });
    let run = run(&alone, &rig);
    assert_eq!(bits(&run.out), bits(&together.out[256 * 128..449 * 128]));
}

/// Pages of any size, in either layout, and one page per sequence.
#[test]
fn pages_do_not_matter() {
    let mut random = Random::new("prefill pages");
    let rig = rig();
    for head_dim in [40, 256] {
        let mut case =
            Case::new(&mut random, Dtype::Bf16, 4, 2, head_dim, "window:90+sinks:9".parse().unwrap());
        case.add(&mut random, 200, 70).add(&mut random, 77, 77);
        let first = check(&case, &rig);
        for page_size in [8, 16, 24, 64, 128, 208] {
            for slots_first in [true, false] {
                let other = Case { page_size, slots_first, shuffle: case.shuffle + 1, ..case.clone() };
                assert_same(&first, &run(&other, &rig), "pages");
            }
        }
    }
}

#[test]
fn again_and_again() {
    let mut random = Random::new("prefill again");
    let rig = rigs().pop().unwrap();
    let mut case = Case::new(&mut random, Dtype::F16, 4, 1, 8, Mask::CAUSAL);
    case.add(&mut random, 100, 40);
    let first = run(&case, &rig);
    for _ in 0..100 {
        assert_same(&first, &run(&case, &rig), "repeats");
    }
}

/// Rows of one tile that are far apart, beyond the last key, and where the sum with a window would not fit.
#[test]
fn positions_far_apart() {
    let mut random = Random::new("prefill apart");
    let rig = rig();
    for mask in ["window:40", "full", "chunk:100+sinks:70"] {
        let mut case = Case::new(&mut random, Dtype::Bf16, 1, 1, 8, mask.parse().unwrap());
        case.add(&mut random, 900, 140);
        case.positions = true;
        for (row, position) in [(0, 7), (1, 550), (2, 905), (3, i32::MAX), (40, i32::MIN), (139, 1000)] {
            case.sequences[0].rows[row].position = position;
        }
        // Rows that see the prefix alone.
        case.add(&mut random, 200, 3);
        case.sequences[1].rows.iter_mut().for_each(|row| row.position = 2000);
        check(&case, &rig);
    }
}

/// A sum that underflows from below, and a tile that the row does not see after it: +0 with and without. Tensor cores sum integers, which
/// have one zero; this would show if some did not.
#[test]
fn a_zero_has_one_sign() {
    let mut random = Random::new("prefill zero");
    let rig = rig();
    let mut case = Case::new(&mut random, Dtype::Bf16, 1, 1, 8, Mask::CAUSAL);
    // The 33rd row, first of a warp, sees the first tile alone.
    case.add(&mut random, 130, 99);
    case.scale = 1.0;
    let s = &mut case.sequences[0];
    s.rows.iter_mut().for_each(|row| row.q = vec![1.0; 8]);
    // Weights near 2^-120 of values that are -2^-40.
    s.k = (0..130 * 8).map(|i| if i < 8 { 0.0 } else { -10.375 }).collect();
    s.v = (0..130 * 8)
        .map(|i| [0.0, -(2f64.powi(-40)), 1.0][usize::from(i >= 8) + usize::from(i >= 64 * 8)])
        .collect();
    let (together, alone) = (run(&case, &rig), run(&case.alone(0, 32), &rig));
    assert!(bits(&alone.out).iter().all(|bits| *bits == 0));
    assert_eq!(bits(&together.out[32 * 8..33 * 8]), bits(&alone.out));

    // A sum of the first tile that underflows to -0 at the second one's score, 100 above, whose values are -0.
    let s = &mut case.sequences[0];
    s.k = (0..130 * 8).map(|i| if i < 64 * 8 { 0.0 } else { 12.5 }).collect();
    s.v = (0..130 * 8).map(|i| if i < 64 * 8 { -(2f64.powi(-40)) } else { -0.0 }).collect();
    let run = run(&case, &rig);
    assert!(bits(&run.out[98 * 8..]).iter().all(|bits| *bits == 0), "the last row sees both tiles");
}

/// A row that sees a key without a page is NaN; others are as they were.
#[test]
fn missing_pages() {
    let mut random = Random::new("prefill missing");
    let rig = rig();
    for (head_dim, kv_heads) in [(64, 2), (256, 1)] {
        let mut case =
            Case::new(&mut random, Dtype::Bf16, 2, kv_heads, head_dim, "window:20".parse().unwrap());
        case.add(&mut random, 300, 100);
        let right = run(&case, &rig);
        let check = |first: usize, last: usize, change: &dyn Fn(&mut Vec<i32>)| {
            let run = run_with(&case, &rig, change);
            for row in 0..100 {
                let (out, lse) = case.row(&run, row);
                let position = 200 + row;
                if position >= 16 * first && position - 19 <= 16 * last + 15 {
                    assert!(
                        out.iter().chain(lse).all(|x| x.is_nan()),
                        "row {row} sees page {first} or {last}"
                    );
                } else {
                    assert_eq!((out, lse), case.row(&right, row), "row {row} sees neither");
                }
            }
        };
        for (page, id) in [(12, -1), (15, 1 << 20), (16, i32::MAX), (17, i32::MIN)] {
            check(page, page, &|table| table[page] = id);
        }
        check(16, 18, &|table| table.truncate(16));
    }
    // In a tile that all rows see whole.
    let mut case = Case::new(&mut random, Dtype::Bf16, 2, 1, 64, Mask::CAUSAL);
    case.add(&mut random, 300, 100);
    let run = run_with(&case, &rig, |table| table[4] = -1);
    assert!(run.out.iter().chain(&run.lse).all(|x| x.is_nan()));
}

/// Rows that see nothing are 0, with −∞, beside others and by themselves: dead ones, those whose document begins after
/// them, those past the last key.
#[test]
fn rows_that_see_nothing() {
    let mut random = Random::new("prefill nothing");
    let rig = rig();
    for (pattern, prefix) in [
        (Pattern::Causal, 0),
        (Pattern::Window { keys: 30 }, 4),
        (Pattern::Full, 0),
        (Pattern::Blockwise { keys: 16 }, 3),
    ] {
        let mask = Mask { pattern, prefix };
        let mut case = Case::new(&mut random, Dtype::Bf16, 2, 1, 8, mask);
        (case.positions, case.documents) = (true, true);
        case.sinks = Some(random.normals(2, 1.0, Dtype::F32));
        case.add(&mut random, 100, 7).add(&mut random, 20, 70).add(&mut random, 0, 3);
        let rows = [(-1, 0), (-3, 0), (50, 90), (80, 60), (80, 20), (99, 0), (i32::MIN, 3)];
        for (row, (position, document)) in case.sequences[0].rows.iter_mut().zip(rows) {
            (row.position, row.document) = (position, document);
        }
        // A tile of nothing else.
        case.sequences[1].rows.iter_mut().for_each(|row| (row.position, row.document) = (10, 100));
        case.sequences[2].rows.iter_mut().for_each(|row| row.position = 40);
        let run = check(&case, &rig);
        assert!(run.lse[14..].iter().all(|x| *x == f64::NEG_INFINITY), "{mask}");
        assert!(run.lse[..4].iter().all(|x| *x == f64::NEG_INFINITY), "{mask}: dead rows");
    }
}

/// Rows whose documents begin behind them see nothing: no tile is loaded for their sake, and their warp computes with none that others see,
/// though both ends of what they do not see lie in it.
#[test]
fn rows_that_see_nothing_cost_nothing() {
    let mut random = Random::new("prefill idle");
    let rig = rig();
    let mut case = Case::new(&mut random, Dtype::Bf16, 1, 1, 8, "window:30".parse().unwrap());
    (case.positions, case.documents) = (true, true);
    case.add(&mut random, 700, 64);
    let mut counted = |position: i32| {
        // A warp has 32 rows.
        for (i, row) in case.sequences[0].rows.iter_mut().enumerate() {
            (row.position, row.document) = if i < 32 { (20 + i as i32, 0) } else { (position, 5) };
        }
        check(&case, &rig).counters.first().map(|c| (c.copy.bytes, c.copy_bytes_written, c.mma))
    };
    let (Some((bytes, written, mma)), Some(dead)) = (counted(2), counted(-1)) else { return };
    assert_eq!(
        (bytes - 32 * 2 * 8, written, mma),
        dead,
        "as for dead rows, but for the rows of q themselves"
    );
}

/// One row of a warp finds a larger score in the second tile, all others in the first.
#[test]
fn one_row_finds_a_larger_score() {
    let mut random = Random::new("prefill larger");
    let rig = rig();
    let full = Mask { pattern: Pattern::Full, prefix: 0 };
    for (row, head_dim) in [(0, 8), (7, 8), (8, 8), (16, 8), (31, 8), (3, 256), (12, 256)] {
        let mut case = Case::new(&mut random, Dtype::F16, 1, 1, head_dim, full);
        case.add(&mut random, 128, 32);
        let s = &mut case.sequences[0];
        // Keys of the first half are the first unit vector, those of the second half the second one.
        for (i, k) in s.k.iter_mut().enumerate() {
            let (key, column) = (i / head_dim, i % head_dim);
            *k = f64::from(u8::from(column == key / 64));
        }
        for (i, of_row) in s.rows.iter_mut().enumerate() {
            of_row.q.fill(0.0);
            of_row.q[usize::from(i == row)] = 8.0;
        }
        case.scale = 1.0;
        check(&case, &rig);
    }
}

/// The largest factors and sinks that are taken, and the smallest cap; and sinks that are far from all scores.
#[test]
fn numbers_at_the_ends_of_their_ranges() {
    let mut random = Random::new("prefill ends");
    let rig = rig();
    for (scale, softcap, sink) in
        [(1e30, 0.0, 0.0), (-1e30, 1e-6, 0.0), (1.0, 1e30, 1.0), (1.0, 0.0, 2e38), (0.0, 1e-6, -2e38)]
    {
        let mut case = Case::new(&mut random, Dtype::Bf16, 2, 1, 8, Mask::CAUSAL);
        (case.scale, case.softcap, case.sinks) = (scale, softcap, Some(vec![sink; 2]));
        case.add(&mut random, 150, 70);
        let run = run(&case, &rig);
        let finite = run.out.iter().chain(&run.lse).all(|x| x.is_finite());
        assert!(finite, "scale {scale}, softcap {softcap}, sinks {sink}");
    }
    let mut case = Case::new(&mut random, Dtype::F16, 4, 1, 8, Mask::CAUSAL);
    case.sinks = Some(vec![300.0, -300.0, 9.0, 4.0]);
    case.add(&mut random, 100, 40);
    check(&case, &rig);
}

/// Rows near the ends of contexts of 32k and 128k positions.
#[test]
fn long_contexts() {
    let mut random = Random::new("prefill long");
    let rig = rig();
    let (k32, k128) = (1 << 15, 1 << 17);
    for (keys, rows, pattern, prefix) in [
        (k32, 70, Pattern::Causal, 0),
        (k32, 3, Pattern::Full, 0),
        (k32, 200, Pattern::Window { keys: 1000 }, 4),
        (k128, 1, Pattern::Causal, 0),
        (k128, 100, Pattern::Window { keys: 300 }, 0),
        (k128 + 50, 100, Pattern::Chunk { keys: 1024 }, 65),
        (k128 + 50, 100, Pattern::Overlap { keys: 512 }, 0),
        (k128 - 70, 100, Pattern::Blockwise { keys: 256 }, 2),
    ] {
        let mask = Mask { pattern, prefix };
        let mut case = Case::new(&mut random, Dtype::Bf16, 1, 1, 8, mask);
        case.page_size = 64;
        case.add(&mut random, keys, rows);
        check(&case, &rig);
    }
}

/// Row 1 of q and of out and page 1 begin beyond 2^31 elements; row 0, which is no sequence's, and page 0, which is not
/// used, would lie in memory that there is not. So do the last slots of a contiguous cache.
#[test]
fn rows_and_pages_beyond_31_bits() {
    let mut random = Random::new("prefill far");
    let rig = rig();
    let stride = (1usize << 31) + 8;
    let mut case = Case::new(&mut random, Dtype::F16, 2, 1, 64, Mask::CAUSAL);
    case.page_size = 304;
    case.add(&mut random, 300, 1);
    let want = run(&case, &rig);
    let memory = Memory::of(&case, &rig, |_| ());
    let near = case.layout(1);
    let caches = case.caches(&near, &[0], 1).map(|x| rig.upload(&encode(&x, case.dtype)));
    let (table, offsets) = (rig.upload(&[1]), rig.upload(&[1, 2]));
    let mut out = rig.poisoned(case.width(), case.dtype);
    // SAFETY: the kernel touches row 1 and page 1 alone, which are all of the buffers.
    let far = |x: &Buffer| unsafe {
        View::from_raw(x.view().address() - 2 * stride as u64, 2 * stride + x.bytes())
    };
    // SAFETY: as above.
    let out_far = unsafe {
        ViewMut::from_raw(out.view_mut().address() - 2 * stride as u64, 2 * stride + 2 * case.width())
    };
    let args_far = AttentionPrefillArgs {
        tokens: 2,
        q: Rows { view: far(&memory.q), stride },
        layout: PageLayout { pages: 2, page_stride: stride, ..near },
        k: far(&caches[0]),
        v: far(&caches[1]),
        table: PageTable { view: table.view(), sequences: 1, stride: 1 },
        offsets: offsets.view(),
        ..args(&case, &memory, RowsMut { view: out_far, stride }, None)
    };
    rig.reports(|| rig.kernels.attention_prefill.launch(&rig.stream, &args_far));
    assert_eq!(bits(&rig.download(&out, case.dtype)), bits(&want.out));

    let (keys, held, stride) = (40_000, 20, (1usize << 16) + 8);
    let mut case = Case::new(&mut random, Dtype::F16, 1, 1, 8, "window:20".parse().unwrap());
    case.page_size = keys;
    case.add(&mut random, keys, 1);
    let want = run(&case, &rig);
    let memory = Memory::of(&case, &rig, |_| ());
    let first = keys - held;
    assert!(first * stride > 1 << 31);
    let s = &case.sequences[0];
    let caches = [&s.k, &s.v].map(|x| {
        let mut slots = vec![f64::NAN; (held - 1) * stride + 8];
        for (slot, x) in slots.chunks_mut(stride).zip(x[first * 8..].chunks(8)) {
            slot[..8].copy_from_slice(x);
        }
        rig.upload(&encode(&slots, case.dtype))
    });
    // SAFETY: the kernel touches the last 20 slots alone, which are all of the buffers.
    let far = |x: &Buffer| unsafe {
        let before = 2 * first * stride;
        View::from_raw(x.view().address() - before as u64, before + x.bytes())
    };
    let table = rig.upload(&[0]);
    let mut out = rig.poisoned(8, case.dtype);
    let args = AttentionPrefillArgs {
        layout: PageLayout { slot_stride: stride, ..case.layout(1) },
        k: far(&caches[0]),
        v: far(&caches[1]),
        table: PageTable { view: table.view(), sequences: 1, stride: 1 },
        ..args(&case, &memory, RowsMut { view: out.view_mut(), stride: 8 }, None)
    };
    rig.reports(|| rig.kernels.attention_prefill.launch(&rig.stream, &args));
    assert_eq!(bits(&rig.download(&out, case.dtype)), bits(&want.out));
}

/// Sequences whose numbers are out of range are left alone, and others are not disturbed.
#[test]
fn numbers_out_of_range() {
    let mut random = Random::new("prefill range");
    let rig = rig();
    let mut case = Case::new(&mut random, Dtype::Bf16, 2, 1, 8, Mask::CAUSAL);
    case.add(&mut random, 30, 2).add(&mut random, 140, 2).add(&mut random, 9, 2);
    let right = run(&case, &rig);
    let memory = Memory::of(&case, &rig, |_| ());
    let launch = |lengths: [i32; 3], offsets: [i32; 4], slots: [i32; 3], whole: &[usize]| {
        let (lengths, offsets, slots) = (rig.upload(&lengths), rig.upload(&offsets), rig.upload(&slots));
        let mut out = rig.poisoned(6 * 16, case.dtype);
        let to = RowsMut { view: out.view_mut(), stride: 16 };
        let args = AttentionPrefillArgs {
            lengths: lengths.view(),
            offsets: offsets.view(),
            slots: Some(slots.view()),
            ..args(&case, &memory, to, None)
        };
        rig.reports(|| rig.kernels.attention_prefill.launch(&rig.stream, &args));
        let out = rig.download(&out, case.dtype);
        for row in 0..6 {
            let got = &out[16 * row..][..16];
            if whole.contains(&(row / 2)) {
                assert_eq!(got, case.row(&right, row).0, "row {row}");
            } else {
                assert!(got.iter().all(|x| x.is_nan()), "row {row} of {lengths:?} {offsets:?} {slots:?}");
            }
        }
    };
    let (lengths, offsets, slots) = ([30, 140, 9], [0, 2, 4, 6], [0, 1, 2]);
    launch(lengths, offsets, slots, &[0, 1, 2]);
    launch([-1, 140, 9], offsets, slots, &[1, 2]);
    launch([30, 141, i32::MAX], offsets, slots, &[0]);
    launch(lengths, [0, 2, 4, 7], slots, &[0, 1]);
    launch(lengths, [0, 2, 5, 7], slots, &[0]);
    launch(lengths, [0, 3, 3, 6], slots, &[]);
    launch(lengths, [-1, 2, 4, 6], slots, &[1, 2]);
    launch(lengths, [-1, 1, 4, 6], slots, &[2]);
    launch(lengths, [0, 2, i32::MIN, 6], slots, &[0]);
    launch(lengths, [2, 0, -2, 6], slots, &[]);
    launch(lengths, [0, 2, 4, 4], slots, &[0, 1]);
    launch(lengths, offsets, [0, -1, 2], &[0, 2]);
    launch(lengths, offsets, [0, 1, 3], &[0, 1]);
}

/// Which tiles are launched first: of one sequence the last, of several those with the most keys.
#[test]
fn heavy_tiles_come_first() {
    use warploom::{
        driver::{Launch, Module},
        kernels::{
            FAMILIES,
            params::{WL_VERSION, WlAttentionPrefill, WlMask, WlPages},
        },
    };
    let mut random = Random::new("prefill order");
    let rig = rig();
    let mut case = Case::new(&mut random, Dtype::Bf16, 1, 1, 8, Mask::CAUSAL);
    // Tiles by their keys: 900 of the second; 640, 512, ..., 128 of the first and 128 of the third; 60 of the fourth.
    case.add(&mut random, 640, 640).add(&mut random, 900, 10).add(&mut random, 128, 128).add(
        &mut random,
        60,
        60,
    );
    let order = [640..650, 512..640, 384..512, 256..384, 128..256, 0..128, 650..778, 778..838];
    let right = run(&case, &rig);
    assert!(right.out.iter().all(|x| x.is_finite()), "a row was left out");
    let memory = Memory::of(&case, &rig, |_| ());
    let family = FAMILIES.iter().find(|f| f.name == "attention_prefill").unwrap();
    let module = Module::load(&rig.driver, family).unwrap();
    let entry = family.entries.iter().find(|e| e.name == "wl_attention_prefill_bf16_64").unwrap();
    let function = module.function(entry.name).unwrap();
    for tiles in 1..=order.len() {
        let mut out = rig.poisoned(838 * 8, case.dtype);
        let table = memory.table();
        let p = WlAttentionPrefill {
            version: WL_VERSION,
            tokens: 838,
            sequences: 4,
            max_rows: 640,
            max_keys: 900,
            heads: 1,
            kv_heads: 1,
            head_dim: 8,
            table_rows: 4,
            scale: case.scale,
            q: memory.q.view().address(),
            out: out.view_mut().address(),
            lengths: memory.lengths.view().address(),
            offsets: memory.offsets.view().address(),
            q_stride: 8,
            out_stride: 8,
            mask: WlMask::default(),
            pages: WlPages {
                k: memory.k.view().address(),
                v: memory.v.view().address(),
                table: table.view.address(),
                page_stride: 128,
                slot_stride: 8,
                table_stride: table.stride as i32,
                pages: memory.layout.pages as i32,
                page_size: 16,
                ..WlPages::default()
            },
            ..WlAttentionPrefill::default()
        };
        let launch = Launch {
            grid: [tiles as u32, 1, 1],
            block: [128, 1, 1],
            shared_bytes: (128 + 3 * 64) * 64 * 2,
            ..Launch::new(bytemuck::bytes_of(&p))
        };
        // SAFETY: the parameter is what the kernel's own launch makes of these shapes, but for the grid.
        unsafe { rig.stream.launch(&function, &launch) }.expect("a clean launch");
        rig.stream.synchronize().expect("synchronisation");
        let out = rig.download(&out, case.dtype);
        for (i, rows) in order[..tiles].iter().enumerate() {
            let rows = 8 * rows.start..8 * rows.end;
            assert_eq!(bits(&out[rows.clone()]), bits(&right.out[rows]), "tile {i}");
        }
        for rows in &order[tiles..] {
            assert!(out[8 * rows.start..8 * rows.end].iter().all(|x| x.is_nan()), "rows {rows:?} came early");
        }
    }
}

/// What a row of CTAs reads, writes to shared memory and computes, by the mask alone: keys that its rows see together,
/// tiles that hold one of them, and mma of the tiles that a warp's rows see.
fn work(case: &Case) -> (u64, u64, u64) {
    let width = [64, 96, 128, 256].into_iter().find(|width| case.head_dim <= *width).unwrap();
    let (rows_of_warp, tile) = if width == 256 { (16, 32) } else { (32, 64) };
    let group = case.heads / case.kv_heads;
    let (mut keys, mut tiles, mut copied) = (0, 0, 0);
    for s in &case.sequences {
        let seen: Vec<_> = (0..s.rows.len() * group).map(|at| case.visible(s, &s.rows[at / group])).collect();
        let hi = |rows: &[warploom::mask::Visible]| rows.iter().map(|v| v.hi).max().unwrap();
        for rows in seen.chunks(4 * rows_of_warp) {
            let lo = rows.iter().filter(|v| v.hi > v.lo).map(|v| v.lo).min().unwrap_or(0);
            let prefix = rows.iter().map(|v| v.prefix).max().unwrap();
            let hi = hi(rows);
            let sees = |key: &usize| *key < prefix || (lo..hi).contains(key);
            keys += (0..s.keys).filter(sees).count();
            let of_tile = |i: &usize| (tile * i..s.keys.min(tile * (i + 1))).any(|key| sees(&key));
            copied += 2 * tile * (0..s.keys.div_ceil(tile)).filter(of_tile).count() + 4 * rows_of_warp;
        }
        for rows in seen.chunks(rows_of_warp) {
            let sees = |key: usize| rows.iter().any(|v| v.contains(key));
            tiles += (0..s.keys.div_ceil(tile)).filter(|i| (tile * i..tile * (i + 1)).any(sees)).count();
        }
    }
    let q = case.tokens() * case.width() * 2;
    let bytes = keys * case.kv_heads * case.head_dim * 2 * 2 + q;
    let mma = tiles * case.kv_heads * rows_of_warp / 16 * (tile / 8) * (width / 16) * 2;
    (bytes as u64, (copied * case.kv_heads * width * 2) as u64, mma as u64)
}

/// K, V and q are read once by each tile of rows, without bank conflicts and in whole sectors; what no row sees is not
/// read, and not computed with, and tiles of it are not even filled with zeros.
#[test]
fn work_follows_the_mask() {
    let mut random = Random::new("prefill work");
    let rig = rig();
    for (i, head_dim) in [64, 96, 128, 256, 64, 80, 128].into_iter().enumerate() {
        let pattern = PATTERNS[i](random.range(1, 90));
        let mask = Mask { pattern, prefix: random.pick(&[0, 4, 70]) };
        let mut case = Case::new(&mut random, [Dtype::Bf16, Dtype::F16][i % 2], 6, 2, head_dim, mask);
        case.page_size = 64;
        case.add(&mut random, 450, 150).add(&mut random, 70, 70).add(&mut random, 300, 1);
        let run = run(&case, &rig);
        let Some(counters) = run.counters.first() else { return };
        let (bytes, copied, mma) = work(&case);
        let counted = (counters.copy.bytes, counters.copy_bytes_written, counters.mma);
        assert_eq!(counted, (bytes, copied, mma), "{case}");
        assert_eq!(counters.copy.sectors * 32, counters.copy.bytes, "{case}: whole sectors");
        assert_eq!(counters.matrix.wavefronts, counters.matrix.ideal, "{case}: bank conflicts of ldmatrix");
        let shared = [&counters.shared_load, &counters.shared_store];
        assert!(shared.iter().all(|s| s.wavefronts == s.ideal), "{case}: bank conflicts {shared:?}");
        assert_eq!(counters.global_store.bytes as usize, case.tokens() * 6 * (head_dim * 2 + 4), "{case}");
        let besides = counters.global_load.sectors * 32;
        assert!(besides < bytes / 4, "{case}: {besides} bytes of numbers and page tables");
    }
    // Rows that see the tiles of keys 0 to 64 and 64 to 128, and rows that see the first and that of 128 to 192: neither
    // compute with the others'.
    let mut case = Case::new(&mut random, Dtype::Bf16, 1, 1, 8, "chunk:64+sinks:64".parse().unwrap());
    case.add(&mut random, 192, 128);
    let (bytes, copied, mma) = work(&case);
    let counters = &run(&case, &rig).counters[0];
    assert_eq!((bytes, copied), ((2 * 192 + 128) * 8 * 2, (2 * 192 + 128) * 64 * 2));
    assert_eq!(mma, 4 * 2 * 2 * 8 * 4 * 2, "four warps, two tiles each");
    assert_eq!((counters.copy.bytes, counters.copy_bytes_written, counters.mma), (bytes, copied, mma));
}

/// Rows with a context that is 16384 keys longer: not a byte, mma or instruction more, where they do not see it.
#[test]
fn work_does_not_grow_with_the_context() {
    let mut random = Random::new("prefill context");
    let rig = rig();
    for pattern in &PATTERNS[1..6] {
        let mask = Mask { pattern: pattern(128), prefix: 5 };
        let mut launch = |keys: usize| {
            let mut case = Case::new(&mut random, Dtype::Bf16, 2, 1, 8, mask);
            case.page_size = 64;
            case.add(&mut random, keys, 100);
            // Equal scores: how often a row finds a larger one must not tell.
            case.sequences[0].rows.iter_mut().for_each(|row| row.q.fill(0.0));
            let run = run(&case, &rig);
            Some((run.counters.first()?.clone(), work(&case)))
        };
        let Some(((short, expected), (long, _))) = launch(1000).zip(launch(1000 + 16384)) else { return };
        assert_eq!((short.copy.bytes, short.copy_bytes_written, short.mma), expected);
        assert_eq!((&short.copy, short.copy_bytes_written), (&long.copy, long.copy_bytes_written));
        assert_eq!((short.mma, short.ctas, short.instructions), (long.mma, long.ctas, long.instructions));
        assert_eq!(short.global_load, long.global_load);
    }
}

/// Llama 3 8B's heads, 64 rows after a context of 236 keys: the integers that the kernel's header leads to.
#[test]
fn every_byte_moves_once() {
    let mut random = Random::new("prefill bytes");
    let rig = rig();
    let mut case = Case::new(&mut random, Dtype::Bf16, 32, 8, 128, Mask::CAUSAL);
    case.page_size = 64;
    case.add(&mut random, 300, 64);
    let result = run(&case, &rig);
    let Some(counters) = result.counters.first() else { return };
    // 32 query rows of 4 heads are a tile: the first's see 268 keys together.
    let (kv, q) = ((268 + 300) * 8 * 128 * 2 * 2, 64 * 32 * 128 * 2);
    assert_eq!((counters.ctas, counters.copy.bytes), (2 * 8, kv + q));
    // Eight rows of a warp see 4, 4, 5 and 5 tiles in one CTA, 5 in the other.
    assert_eq!(counters.mma, (18 + 20) * 256 * 8);
    let besides = counters.global_load.sectors * 32;
    assert!(besides < (kv + q) / 50, "{besides} bytes of numbers and page tables");
    // A tile more of context: each warp looks up eight pages more, of eight keys each.
    let before = counters.global_load.bytes;
    let mut longer = case.empty();
    longer.add(&mut random, 364, 64);
    let result = run(&longer, &rig);
    assert_eq!(result.counters[0].global_load.bytes - before, 2 * 8 * 4 * 8 * 4);

    // Nothing of a dead row is read.
    let mut case = case.empty();
    case.mask = "window:40".parse().unwrap();
    case.add(&mut random, 100, 4);
    case.positions = true;
    (case.sequences[0].rows[0].position, case.sequences[0].rows[3].position) = (-1, -1);
    let result = run(&case, &rig);
    assert_eq!(result.counters[0].copy.bytes, 41 * 8 * 128 * 2 * 2 + 2 * 32 * 128 * 2);
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut random = Random::new("prefill refusals");
    let rig = rig();
    let mut case = Case::new(&mut random, Dtype::Bf16, 4, 2, 16, Mask::CAUSAL);
    case.add(&mut random, 20, 2).add(&mut random, 300, 1);
    let memory = Memory::of(&case, &rig, |_| ());
    let mut out = rig.poisoned(3 * 64, case.dtype);
    let mut lse = rig.poisoned(12, Dtype::F32);
    let mut refused = |change: &dyn Fn(&mut AttentionPrefillArgs), wanted: &str| {
        let to = RowsMut { view: out.view_mut(), stride: 64 };
        let mut args = args(&case, &memory, to, Some(lse.view_mut()));
        change(&mut args);
        let launched = rig.kernels.attention_prefill.launch(&rig.stream, &args);
        match launched {
            Ok(()) => assert_eq!(wanted, ""),
            Err(error) => {
                let error = error.to_string();
                assert!(!wanted.is_empty() && error.contains(wanted), "{error}, not {wanted}");
            }
        }
    };
    refused(&|_| (), "");
    refused(&|a| a.sequences = 0, "");
    refused(&|a| a.dtype = Dtype::F32, "dtype: f32");
    refused(&|a| a.tokens = 4, "q: ");
    refused(&|a| a.tokens = usize::MAX, "tokens: ");
    refused(&|a| (a.tokens, a.heads) = (1 << 28, 8), "tokens: 268435456 of 8 heads");
    refused(&|a| a.sequences = 3, "table: 2 rows for 3 sequences");
    refused(&|a| a.sequences = 65536, "sequences: 65536");
    refused(&|a| a.max_rows = 0, "max_rows: 0");
    refused(&|a| a.max_rows = usize::MAX, "max_rows: ");
    refused(&|a| a.max_keys = 0, "max_keys: 0");
    refused(&|a| a.max_keys = 1 << 29, "max_keys: ");
    refused(&|a| a.heads = 3, "heads: 3; supported are multiples of kv_heads, 2");
    refused(&|a| a.heads = 0, "heads: 0");
    refused(&|a| a.layout.kv_heads = 0, "kv_heads: 0");
    refused(&|a| a.layout.head_dim = 12, "head_dim: 12; supported are multiples of 8");
    refused(&|a| a.layout.head_dim = 264, "head_dim: 264");
    refused(&|a| a.layout.page_size = 12, "page_size: 12");
    refused(&|a| a.layout.slot_stride = 20, "slot_stride: 20; supported are multiples of 8");
    refused(&|a| a.layout.pages += 1, "k: ");
    // A page of 312 positions, of which 304 are there.
    fn cut(args: &mut AttentionPrefillArgs, max_keys: usize) {
        (args.layout, args.max_keys) = (PageLayout::slots_first(1, 312, 2, 16), max_keys);
        let bytes = 304 * 2 * 16 * 2;
        (args.k, args.v) = (args.k.slice(0..bytes), args.v.slice(0..bytes));
    }
    refused(&|a| cut(a, 304), "");
    refused(&|a| cut(a, 305), "k: ");
    refused(&|a| a.v = a.v.slice(0..a.v.bytes() - 2), "v: ");
    refused(&|a| a.k = a.k.slice(2..a.k.bytes()), "k: address");
    refused(&|a| a.q.stride = 68, "q.stride: 68; supported are multiples of 8");
    refused(&|a| a.out.stride = 56, "out: rows 56 elements apart overlap");
    refused(&|a| a.q.view = a.q.view.slice(0..64), "q: 64 bytes do not hold");
    refused(&|a| a.lengths = a.lengths.slice(0..4), "lengths: ");
    refused(&|a| a.offsets = a.offsets.slice(0..8), "offsets: ");
    refused(&|a| a.slots = Some(a.lengths.slice(0..4)), "slots: ");
    refused(&|a| a.positions = Some(a.lengths.slice(0..4)), "positions: ");
    refused(&|a| a.documents = Some(a.lengths.slice(0..4)), "documents: ");
    refused(&|a| a.sinks = Some(a.lengths), "sinks: ");
    refused(&|a| a.mask = Mask { pattern: Pattern::Window { keys: 0 }, prefix: 0 }, "mask.keys: 0");
    refused(&|a| a.mask = Mask { pattern: Pattern::Window { keys: usize::MAX }, prefix: usize::MAX }, "");
    refused(&|a| a.scale = f32::NAN, "scale: NaN");
    refused(&|a| a.softcap = -1.0, "softcap: -1");
    refused(&|a| a.softcap = f32::INFINITY, "softcap: inf");
}
