//! Shuffles, votes, matches, reductions, elections and barriers.

use crate::harness::*;

/// One warp; thread i stores `%r9` (and `%r8` after it), lanes outside `mask` having left before.
fn warp(body: &str, mask: u32, values: &[u32]) -> Vec<[u32; 2]> {
    let body = format!(
        "mov.u32 %r0, %laneid; mul.wide.u32 %rd2, %r0, 4; add.s64 %rd0, %rd0, %rd2; mul.wide.u32 %rd2, %r0, 8; add.s64 %rd1, %rd1, %rd2;
        ld.global.u32 %r1, [%rd0]; mov.u32 %r8, 0; mov.u32 %r2, {mask}; shr.u32 %r3, %r2, %r0; and.b32 %r3, %r3, 1; setp.eq.u32 %p9, %r3, 0; @%p9 exit;
        {body}
        st.global.v2.u32 [%rd1], {{%r9, %r8}};"
    );
    let out = words(&Program::new(&body, &[bytes_of(values.iter().copied()), vec![0; 256]]).run()[1]);
    out.chunks(2).map(|c| [c[0], c[1]]).collect()
}

fn values(seed: u64) -> Vec<u32> {
    random(32, seed).iter().map(|v| *v as u32).collect()
}

const MASKS: [u32; 5] = [0xffff_ffff, 0x0000_ffff, 0x5555_5555, 0x8000_0001, 0x0000_0010];

#[test]
fn shuffles_in_every_mode_width_and_distance() {
    let v = values(1);
    for width in [1u32, 2, 4, 8, 16, 32] {
        for distance in [0u32, 1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 32, 33] {
            for mode in ["up", "down", "bfly", "idx"] {
                let clamp = if mode == "up" { 0 } else { 31 };
                let c = (32 - width) << 8 | clamp;
                let out = warp(
                    &format!(
                        "shfl.sync.{mode}.b32 %r9|%p0, %r1, {distance}, {c}, -1; selp.u32 %r8, 1, 0, %p0;"
                    ),
                    u32::MAX,
                    &v,
                );
                for lane in 0..32u32 {
                    // As the CUDA intrinsics put it: a lane whose partner lies outside its segment keeps its own value.
                    let (first, at, by) = (lane / width * width, lane % width, distance % 32);
                    let from = match mode {
                        "up" => lane.checked_sub(by).filter(|from| *from >= first),
                        "down" => (at + by < width).then_some(lane + by),
                        "bfly" => (at ^ by < width || (lane ^ by) < first).then_some(lane ^ by),
                        _ => Some(first + by % width),
                    };
                    let expected = [v[from.unwrap_or(lane) as usize], u32::from(from.is_some())];
                    assert_eq!(
                        out[lane as usize], expected,
                        "{mode} {distance} of width {width}, lane {lane}"
                    );
                }
            }
        }
    }
    // Every lane asks for another one, within a part of the warp.
    for mask in MASKS {
        let members: Vec<u32> = (0..32).filter(|l| mask >> l & 1 == 1).collect();
        let source = |lane: u32| members[(lane as usize * 7 + 3) % members.len()];
        let wanted: Vec<u32> = (0..32).map(|l| source(l) << 16 | (l * 11)).collect();
        let out = warp(
            &format!("shr.u32 %r4, %r1, 16; shfl.sync.idx.b32 %r9, %r1, %r4, 31, {mask};"),
            mask,
            &wanted,
        );
        for lane in &members {
            assert_eq!(out[*lane as usize][0], wanted[source(*lane) as usize]);
        }
    }
}

#[test]
fn votes() {
    for mask in MASKS {
        for pattern in [0u32, u32::MAX, 0x5555_5555, 1, 0xffff_0000, 0x8000_0001, 0x10] {
            let held: Vec<u32> = (0..32).map(|l| pattern >> l & 1).collect();
            let inside = pattern & mask;
            for (mode, expected) in
                [("all", inside == mask), ("any", inside != 0), ("uni", inside == 0 || inside == mask)]
            {
                let out = warp(
                    &format!(
                        "setp.ne.u32 %p0, %r1, 0; vote.sync.{mode}.pred %p1, %p0, {mask}; selp.u32 %r9, 1, 0, %p1; vote.sync.ballot.b32 %r8, !%p0, {mask};"
                    ),
                    mask,
                    &held,
                );
                for lane in (0..32).filter(|l| mask >> l & 1 == 1) {
                    assert_eq!(out[lane], [u32::from(expected), !pattern & mask], "{mode}");
                }
            }
        }
        let out = warp("activemask.b32 %r9;", mask, &values(2));
        assert!((0..32).all(|l| out[l][0] == if mask >> l & 1 == 1 { mask } else { 0 }));
    }
}

#[test]
fn matches_and_reductions() {
    for mask in MASKS {
        let lanes: Vec<usize> = (0..32).filter(|l| mask >> l & 1 == 1).collect();
        for v in [
            values(3),
            (0..32).map(|l| l % 3).collect(),
            vec![7; 32],
            (0..32u32).map(|l| 0x7fff_fffe + l).collect(),
        ] {
            let same = |l: usize| lanes.iter().fold(0, |m, k| m | u32::from(v[*k] == v[l]) << k);
            let out = warp(
                &format!(
                    "match.any.sync.b32 %r9, %r1, {mask}; mov.b64 %rd3, {{%r1, %r1}}; match.any.sync.b64 %r8, %rd3, {mask};"
                ),
                mask,
                &v,
            );
            for l in &lanes {
                assert_eq!(out[*l], [same(*l); 2]);
            }
            let equal = same(lanes[0]) == mask;
            let out =
                warp(&format!("match.all.sync.b32 %r9|%p0, %r1, {mask}; selp.u32 %r8, 1, 0, %p0;"), mask, &v);
            for l in &lanes {
                assert_eq!(out[*l], if equal { [mask, 1] } else { [0, 0] });
            }
            type Fold = fn(u32, u32) -> u32;
            let ops: [(&str, Fold); 9] = [
                ("add.u32", u32::wrapping_add),
                ("add.s32", u32::wrapping_add),
                ("min.u32", u32::min),
                ("max.u32", u32::max),
                ("min.s32", |a, b| (a as i32).min(b as i32) as u32),
                ("max.s32", |a, b| (a as i32).max(b as i32) as u32),
                ("and.b32", |a, b| a & b),
                ("or.b32", |a, b| a | b),
                ("xor.b32", |a, b| a ^ b),
            ];
            for (op, fold) in ops {
                let expected = lanes.iter().map(|l| v[*l]).reduce(fold).unwrap();
                let out = warp(&format!("redux.sync.{op} %r9, %r1, {mask};"), mask, &v);
                assert!(lanes.iter().all(|l| out[*l][0] == expected), "redux {op}");
            }
        }
        let out = warp(&format!("elect.sync %r9|%p0, {mask}; selp.u32 %r8, 1, 0, %p0;"), mask, &values(4));
        for l in &lanes {
            assert_eq!(out[*l], [lanes[0] as u32, u32::from(*l == lanes[0])]);
        }
    }
}

/// The two halves of a warp do the same with masks of their own, each within its own branch.
#[test]
fn halves_of_a_warp_apart() {
    let body = "setp.lt.u32 %p0, %r0, 16; @%p0 bra low;
        redux.sync.add.u32 %r9, %r1, 0xffff0000; shfl.sync.bfly.b32 %r8, %r1, 1, 31, 0xffff0000; bra end;
        low: redux.sync.max.u32 %r9, %r1, 0xffff; vote.sync.ballot.b32 %r8, %p0, 0xffff; bar.warp.sync 0xffff;
        end: bar.warp.sync -1;";
    let v: Vec<u32> = (0..32).map(|l| l * l).collect();
    let out = warp(body, u32::MAX, &v);
    for l in 0..32usize {
        let high = [v[16..].iter().sum(), v[l ^ 1]];
        assert_eq!(out[l], if l < 16 { [225, 0xffff] } else { high });
    }
}

#[test]
fn matrices_move_across_the_warp() {
    let v = values(6);
    let out = warp("movmatrix.sync.aligned.m8n8.trans.b16 %r9, %r1;", u32::MAX, &v);
    let element = |w: &dyn Fn(usize) -> u32, row: usize, column: usize| {
        w(row * 4 + column / 2) >> (16 * (column % 2)) & 0xffff
    };
    for row in 0..8 {
        for column in 0..8 {
            assert_eq!(element(&|i| out[i][0], row, column), element(&|i| v[i], column, row));
        }
    }
}

/// Threads of several warps write their `%r9` after the body, whatever the schedule.
fn block(threads: u32, body: &str, expected: impl Fn(u32) -> u32) {
    let body = format!(
        ".shared .align 4 .b8 room[4096]; mov.u32 %r0, %tid.x; mul.wide.u32 %rd1, %r0, 4; add.s64 %rd0, %rd0, %rd1; mov.u32 %r1, room; shl.b32 %r2, %r0, 2;
        add.s32 %r1, %r1, %r2; mov.u32 %r9, 0;\n{body}\nst.global.u32 [%rd0], %r9;"
    );
    for schedule in [ptxsim::Schedule::InOrder, ptxsim::Schedule::Reversed, ptxsim::Schedule::Random(3)] {
        let mut program =
            Program::new(&body, &[vec![0; 4 * threads as usize]]).sized([1; 3], [threads, 1, 1]);
        program.launch.schedule = schedule;
        for (thread, got) in words(&program.run()[0]).iter().enumerate() {
            assert_eq!(*got, expected(thread as u32), "thread {thread}");
        }
    }
}

#[test]
fn barriers_of_the_whole_cta() {
    for barrier in [
        "bar.sync 0;",
        "barrier.sync 0;",
        "barrier.sync.aligned 0;",
        "bar.cta.sync 5;",
        "bar.sync 3, 96;",
        "mov.u32 %r5, 2; bar.sync %r5;",
    ] {
        // Each thread reads what its mirror image wrote.
        let body = format!(
            "st.shared.u32 [%r1], %r0; {barrier} sub.u32 %r3, 95, %r0; shl.b32 %r3, %r3, 2; mov.u32 %r4, room; add.s32 %r3, %r3, %r4; ld.shared.u32 %r9, [%r3];"
        );
        block(96, &body, |t| 95 - t);
    }
    for red in ["bar.red", "barrier.cta.red"] {
        let suffix = if red == "bar.red" { "" } else { ".aligned" };
        let body = format!("rem.u32 %r3, %r0, 3; setp.eq.u32 %p0, %r3, 0; {red}.popc{suffix}.u32 %r4, 0, %p0; {red}.and{suffix}.pred %p1, 0, %p0; {red}.or{suffix}.pred %p2, 0, %p0;
            {red}.and{suffix}.pred %p3, 1, 96, !%p1; selp.u32 %r5, 1000, 0, %p1; selp.u32 %r6, 2000, 0, %p2; selp.u32 %r7, 4000, 0, %p3; add.s32 %r9, %r4, %r5; add.s32 %r9, %r9, %r6; add.s32 %r9, %r9, %r7;");
        block(96, &body, |_| 32 + 2000 + 4000);
    }
}

#[test]
fn producers_arrive_and_consumers_wait() {
    // Warp 0 writes, arrives and goes on; warp 1 waits for it. Then the other way round, twice.
    let body = "
        setp.lt.u32 %p0, %r0, 32; mov.u32 %r7, 0;
        again: @!%p0 bra consumer;
        mad.lo.u32 %r3, %r7, 100, %r0; st.shared.u32 [%r1], %r3; bar.arrive 1, 64; bar.sync 2, 64; bra next;
        consumer: bar.sync 1, 64; ld.shared.u32 %r4, [%r1+-128]; add.s32 %r9, %r9, %r4; bar.arrive 2, 64;
        next: add.s32 %r7, %r7, 1; setp.lt.u32 %p1, %r7, 3; @%p1 bra again;";
    block(64, body, |t| if t < 32 { 0 } else { 300 + 3 * (t - 32) });
}
