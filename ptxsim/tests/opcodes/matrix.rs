//! ldmatrix, stmatrix and every form of mma.sync, against the layouts of the ISA and triple loops.

use crate::{
    compare::{bf16, f16},
    harness::*,
};

/// Lane l, register i of a fragment of 8 x 8 tiles of 16-bit elements: row l / 4, columns 2 (l % 4) and the next.
fn tile_word(tile: &[[u16; 8]; 8], lane: usize, transposed: bool) -> u32 {
    let (row, column) = (lane / 4, 2 * (lane % 4));
    let at = |r: usize, c: usize| u32::from(if transposed { tile[c][r] } else { tile[r][c] });
    at(row, column) | at(row, column + 1) << 16
}

#[test]
fn ldmatrix_and_stmatrix() {
    let data: Vec<u16> = (0..256).map(|i| (i * 257 % 65521) as u16).collect();
    let bytes: Vec<u8> = data.iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut tiles = [[[0u16; 8]; 8]; 4];
    for (i, v) in data.iter().enumerate() {
        tiles[i / 64][i / 8 % 8][i % 8] = *v;
    }
    for count in [1usize, 2, 4] {
        for transposed in [false, true] {
            let trans = if transposed { ".trans" } else { "" };
            let registers: Vec<String> = (10..10 + count).map(|i| format!("%r{i}")).collect();
            let list = registers.join(",");
            let stores: String = registers
                .iter()
                .enumerate()
                .map(|(i, r)| format!("st.global.u32 [%rd1+{}], {r};\n", 128 * i))
                .collect();
            // Rows lie in shared memory at 16 bytes each; lane l gives the address of row l % 8 of tile l / 8.
            let start = ".shared .align 16 .b8 room[512]; mov.u32 %r0, %laneid; mul.wide.u32 %rd2, %r0, 16; mov.u64 %rd3, room; add.s64 %rd3, %rd3, %rd2;
                mul.wide.u32 %rd4, %r0, 4; add.s64 %rd5, %rd0, %rd2; cvt.u32.u64 %r9, %rd3;";
            let body = format!("{start} ld.global.v4.u32 {{%r1, %r2, %r3, %r4}}, [%rd5]; st.shared.v4.u32 [%rd3], {{%r1, %r2, %r3, %r4}}; bar.warp.sync -1; add.s64 %rd1, %rd1, %rd4;
                ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{list}}}, [%r9]; {stores}");
            let out = words(&Program::new(&body, &[bytes.clone(), vec![0; 512]]).run()[1]);
            for i in 0..count {
                for lane in 0..32 {
                    assert_eq!(
                        out[32 * i + lane],
                        tile_word(&tiles[i], lane, transposed),
                        "x{count}{trans} tile {i} lane {lane}"
                    );
                }
            }
            // The inverse: fragments as above are stored as the tiles.
            let fragments: Vec<u32> = (0..4)
                .flat_map(|i| (0..32).map(move |lane| (i, lane)))
                .map(|(i, lane)| tile_word(&tiles[i], lane, transposed))
                .collect();
            let loads: String = registers
                .iter()
                .enumerate()
                .map(|(i, r)| format!("ld.global.u32 {r}, [%rd6+{}];\n", 128 * i))
                .collect();
            let body = format!("{start} mov.u32 %r1, 0; st.shared.v4.u32 [%rd3], {{%r1, %r1, %r1, %r1}}; bar.warp.sync -1; add.s64 %rd6, %rd0, %rd4; {loads}
                stmatrix.sync.aligned.m8n8.x{count}{trans}.shared::cta.b16 [%r9], {{{list}}}; bar.warp.sync -1;
                add.s64 %rd1, %rd1, %rd2; ld.shared.v4.u32 {{%r1, %r2, %r3, %r4}}, [%rd3]; st.global.v4.u32 [%rd1], {{%r1, %r2, %r3, %r4}};");
            let out = &Program::new(&body, &[bytes_of(fragments), vec![0; 512]]).run()[1];
            assert_eq!(out[..128 * count], bytes[..128 * count], "stmatrix x{count}{trans}");
            assert!(out[128 * count..].iter().all(|b| *b == 0));
        }
    }
}

/// An element type: bits, and its value.
#[derive(Clone, Copy)]
struct Element {
    name: &'static str,
    bits: usize,
    read: fn(u64) -> f64,
}

fn fp8(bits: u64, exponent_bits: u32) -> f64 {
    let fraction_bits = 7 - exponent_bits;
    let (e, m) = (bits >> fraction_bits & ((1 << exponent_bits) - 1), bits & ((1 << fraction_bits) - 1));
    let (bias, m) = ((1 << (exponent_bits - 1)) - 1, m as f64 / f64::from(1 << fraction_bits));
    let size = if e == 0 { m * 2f64.powi(1 - bias) } else { (1.0 + m) * 2f64.powi(e as i32 - bias) };
    if bits >> 7 & 1 == 1 { -size } else { size }
}

const ELEMENTS: [Element; 10] = [
    Element { name: "f16", bits: 16, read: f16 },
    Element { name: "bf16", bits: 16, read: bf16 },
    Element { name: "tf32", bits: 32, read: |x| f64::from(f32::from_bits(x as u32 & !0x1fff)) },
    Element { name: "e4m3", bits: 8, read: |x| fp8(x, 4) },
    Element { name: "e5m2", bits: 8, read: |x| fp8(x, 5) },
    Element { name: "s8", bits: 8, read: |x| f64::from(x as u8 as i8) },
    Element { name: "u8", bits: 8, read: |x| f64::from(x as u8) },
    Element { name: "s4", bits: 4, read: |x| f64::from(((x << 4) as u8 as i8) >> 4) },
    Element { name: "u4", bits: 4, read: |x| (x & 15) as f64 },
    Element { name: "f64", bits: 64, read: f64::from_bits },
];

fn element(name: &str) -> Element {
    *ELEMENTS.iter().find(|e| e.name == name).expect("a known type")
}

/// Some bits of a type: small finite numbers, so that sums are exact or nearly so.
fn some(element: Element, random: u64) -> u64 {
    match element.name {
        "f16" => u64::from(half::f16::from_f64((random % 65) as f64 / 16.0 - 2.0).to_bits()),
        "bf16" => u64::from(half::bf16::from_f64((random % 65) as f64 / 16.0 - 2.0).to_bits()),
        "tf32" => u64::from(((random % 2001) as f32 / 512.0 - 2.0).to_bits() & !0x1fff) | random & 0x1fff,
        "f64" => ((random % 2001) as f64 / 333.0 - 3.0).to_bits(),
        "e4m3" => random & 0xbf,
        "e5m2" => random & 0xbf | 0x30,
        _ => random & ((1 << element.bits) - 1),
    }
}

/// Registers of a fragment: row and column of element `i` of lane `lane` as the ISA draws them. `rows` are those of the
/// operand (the columns of B are its rows here, as it lies by columns).
fn place(rows: usize, bits: usize, lane: usize, i: usize) -> (usize, usize) {
    // 64-bit elements are laid out as 32-bit ones.
    let each = (32 / bits.min(32)).max(1);
    let (word, within) = (i / each, i % each);
    let row = if rows == 16 { lane / 4 + 8 * (word % 2) } else { lane / 4 };
    let block = if rows == 16 { word / 2 } else { word };
    (row, 4 * each * block + each * (lane % 4) + within)
}

struct Form {
    m: usize,
    k: usize,
    a: Element,
    b: Element,
    c: &'static str,
    d: &'static str,
    flag: &'static str,
}

/// Runs one mma on random operands and compares with a triple loop.
fn check_mma(form: &Form, seed: u64) {
    let Form { m, k, a, b, c, d, flag } = *form;
    let noise = random(2 * m * k + 8 * k + 8 * m, seed);
    let mut left = vec![vec![0u64; k]; m];
    let mut right = vec![vec![0u64; k]; 8];
    let mut addend = vec![vec![0f64; 8]; m];
    let mut noise = noise.into_iter();
    left.iter_mut().flatten().for_each(|x| *x = some(a, noise.next().unwrap()));
    right.iter_mut().flatten().for_each(|x| *x = some(b, noise.next().unwrap()));
    let integer = c == "s32";
    addend.iter_mut().flatten().for_each(|x| {
        let v = noise.next().unwrap();
        *x = match (integer, v % 4) {
            (true, 0) => f64::from(i32::MAX - (v >> 40) as i32 % 1000),
            (true, 1) => f64::from(i32::MIN + (v >> 40) as i32 % 1000),
            (true, _) => f64::from((v >> 32) as i32),
            _ => (v % 129) as f64 / 16.0 - 4.0,
        };
    });
    // Fragments, one register a lane after another.
    let pack = |matrix: &[Vec<u64>], e: Element| -> Vec<Vec<u64>> {
        let per_lane = matrix.len() * k / 32;
        let each = (32 / e.bits.min(32)).max(1);
        (0..per_lane / each)
            .map(|register| {
                (0..32)
                    .map(|lane| {
                        (0..each).fold(0, |word, i| {
                            let (row, column) = place(matrix.len(), e.bits, lane, register * each + i);
                            word | matrix[row][column] << (i * e.bits.min(63))
                        })
                    })
                    .collect()
            })
            .collect()
    };
    let bits_of = |ty: &str, x: f64| match ty {
        "f16" => u64::from(half::f16::from_f64(x).to_bits()),
        "f32" => u64::from((x as f32).to_bits()),
        "f64" => x.to_bits(),
        _ => u64::from(x as i64 as u32),
    };
    let wide = d == "f64";
    let accumulators = |ty: &str| m / 8 * if ty == "f16" { 1 } else { 2 };
    let c_registers: Vec<Vec<u64>> = (0..accumulators(c))
        .map(|register| {
            (0..32)
                .map(|lane| {
                    if c == "f16" {
                        let (row, column) = (lane / 4 + 8 * register, 2 * (lane % 4));
                        bits_of(c, addend[row][column]) | bits_of(c, addend[row][column + 1]) << 16
                    } else {
                        bits_of(c, addend[lane / 4 + 8 * (register / 2)][2 * (lane % 4) + register % 2])
                    }
                })
                .collect()
        })
        .collect();
    let fragments = [pack(&left, a), pack(&right, b), c_registers];
    let mut body = String::from(
        "mov.u32 %r0, %laneid; mul.wide.u32 %rd2, %r0, 8; add.s64 %rd0, %rd0, %rd2; add.s64 %rd1, %rd1, %rd2; .reg .b32 %w<64>; .reg .f64 %g<64>;\n",
    );
    let (file, load) = if wide { ("%g", "f64") } else { ("%w", "b32") };
    let mut next = 0;
    let mut names = vec![];
    for fragment in &fragments {
        let list: Vec<String> = fragment
            .iter()
            .map(|_| {
                next += 1;
                format!("{file}{}", next - 1)
            })
            .collect();
        names.push(format!("{{{}}}", list.join(",")));
    }
    for i in 0..next {
        body += &format!("ld.global.{load} {file}{i}, [%rd0+{}];\n", 256 * i);
    }
    let results: Vec<String> = (0..accumulators(d)).map(|i| format!("{file}{}", next + i)).collect();
    let opcode = format!("mma.sync.aligned.m{m}n8k{k}.row.col{flag}.{d}.{}.{}.{c}", a.name, b.name);
    body += &format!("{opcode} {{{}}}, {}, {}, {};\n", results.join(","), names[0], names[1], names[2]);
    for (i, r) in results.iter().enumerate() {
        body += &format!("st.global.{load} [%rd1+{}], {r};\n", 256 * i);
    }
    let input: Vec<u8> = fragments.iter().flatten().flatten().flat_map(|v| v.to_le_bytes()).collect();
    let mut program = Program::new(&body, &[input, vec![0; 256 * results.len()]]);
    let out = doubles(&program.run()[1]);
    assert_eq!(program.report().counters.mma, 1);
    for row in 0..m {
        for column in 0..8 {
            let products: Vec<f64> =
                (0..k).map(|i| (a.read)(left[row][i]) * (b.read)(right[column][i])).collect();
            let lane = row % 8 * 4 + column / 2;
            let raw = if d == "f16" {
                out[32 * (row / 8) + lane] >> (16 * (column % 2)) & 0xffff
            } else {
                out[32 * (row / 8 * 2 + column % 2) + lane]
            };
            let exact = products.iter().sum::<f64>() + addend[row][column];
            if integer {
                let total = exact as i64;
                let expected = if flag.is_empty() {
                    total as i32
                } else {
                    total.clamp(i32::MIN.into(), i32::MAX.into()) as i32
                };
                assert_eq!(raw as u32 as i32, expected, "{opcode} row {row} column {column}");
                continue;
            }
            let size: f64 = products.iter().map(|p| p.abs()).sum::<f64>() + addend[row][column].abs();
            let (got, unit) = match d {
                "f64" => (f64::from_bits(raw), 2f64.powi(-50)),
                "f32" => (f64::from(f32::from_bits(raw as u32)), 2f64.powi(-20)),
                _ => (f16(raw), 2f64.powi(-10)),
            };
            assert!(
                (got - exact).abs() <= size * unit,
                "{opcode} row {row} column {column}: {got} for {exact}"
            );
        }
    }
}

#[test]
fn float_products() {
    let mut forms = vec![];
    for (name, shapes) in [("f16", &[8, 16][..]), ("bf16", &[8, 16]), ("tf32", &[4, 8])] {
        for k in shapes {
            forms.push((16, *k, name, name, "f32", "f32"));
        }
    }
    forms.extend([
        (16, 8, "f16", "f16", "f16", "f16"),
        (16, 16, "f16", "f16", "f16", "f16"),
        (16, 16, "f16", "f16", "f16", "f32"),
        (16, 16, "f16", "f16", "f32", "f16"),
    ]);
    for a in ["e4m3", "e5m2"] {
        for b in ["e4m3", "e5m2"] {
            forms.extend([(16, 32, a, b, "f32", "f32"), (16, 16, a, b, "f32", "f32")]);
        }
    }
    forms.extend([
        (8, 4, "f64", "f64", "f64", "f64"),
        (16, 4, "f64", "f64", "f64", "f64"),
        (16, 8, "f64", "f64", "f64", "f64"),
        (16, 16, "f64", "f64", "f64", "f64"),
    ]);
    for (i, (m, k, a, b, c, d)) in forms.into_iter().enumerate() {
        for seed in 0..3 {
            check_mma(&Form { m, k, a: element(a), b: element(b), c, d, flag: "" }, (100 * i + seed) as u64);
        }
    }
}

#[test]
fn integer_products_wrap_or_saturate() {
    for (types, shapes) in
        [(["s8", "u8"], [(8, 16), (16, 16), (16, 32)]), (["s4", "u4"], [(8, 32), (16, 32), (16, 64)])]
    {
        for a in types {
            for b in types {
                for (m, k) in shapes {
                    for flag in ["", ".satfinite"] {
                        for seed in 0..2 {
                            check_mma(
                                &Form { m, k, a: element(a), b: element(b), c: "s32", d: "s32", flag },
                                (m * k) as u64 + seed,
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn infinities_and_nan_stay_in_their_row_and_column() {
    // Row 3 of A holds an infinity, column 5 of B a NaN.
    let body = "mov.u32 %r0, %laneid; shr.u32 %r1, %r0, 2; and.b32 %r2, %r0, 3; mov.b32 %r3, 0x3f803f80; mov.b32 %r4, 0x3f803f80; mov.f32 %f0, 0f00000000;
        setp.eq.u32 %p0, %r0, 12; @%p0 mov.b32 %r3, 0x3f807f80; setp.eq.u32 %p1, %r0, 21; @%p1 mov.b32 %r4, 0x7fc03f80; mov.b32 %r5, 0x3f803f80;
        mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%f1, %f2, %f3, %f4}, {%r3, %r5}, {%r4}, {%f0, %f0, %f0, %f0};
        mul.wide.u32 %rd1, %r0, 16; add.s64 %rd0, %rd0, %rd1; st.global.v4.f32 [%rd0], {%f1, %f2, %f3, %f4};";
    let out = words(&Program::new(body, &[vec![0; 512]]).run()[0]);
    for row in 0..16 {
        for column in 0..8 {
            let got = f32::from_bits(out[(row % 8 * 4 + column / 2) * 4 + row / 8 * 2 + column % 2]);
            match (row, column) {
                (_, 5) => assert!(got.is_nan()),
                (3, _) => assert_eq!(got, f32::INFINITY),
                _ => assert_eq!(got, 8.0),
            }
        }
    }
}
