//! Kernels of one instruction: `in` is a table of operands, 8 bytes each, a row a thread; `out` has 8 bytes a thread.

use ptxsim::{Device, Gpu, Launch, Module, Report};

/// What stands before every kernel; sm_90 so that forms of all targets parse alike.
pub const HEADER: &str = ".version 8.7\n.target sm_90\n.address_size 64\n";

/// The file of an operand: 16, 32 or 64 bits, or a predicate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum File {
    H,
    R,
    D,
    P,
}

fn file(letter: char) -> File {
    match letter {
        'h' => File::H,
        'r' => File::R,
        'd' => File::D,
        'p' => File::P,
        _ => panic!("operand letter {letter}"),
    }
}

/// The kernel around an instruction in which `$d` is the result and `$a` to `$e` the operands; `signature` has the letter of
/// the result's file and those of the operands: `"d:rr"`.
fn kernel(instruction: &str, signature: &str) -> String {
    let (result, operands) = signature.split_once(':').expect("result:operands");
    let result = file(result.chars().next().expect("a result"));
    let operands: Vec<File> = operands.chars().map(file).collect();
    let mut text = format!(
        "{HEADER}.visible .entry t(.param .u64 in, .param .u64 out)\n{{\n\
         .reg .b16 %h<9>; .reg .b32 %r<20>; .reg .b64 %d<20>; .reg .pred %p<9>;\n\
         ld.param.u64 %d10, [in]; ld.param.u64 %d11, [out];\n\
         mov.u32 %r10, %tid.x; mov.u32 %r11, %ctaid.x; mov.u32 %r12, %ntid.x; mad.lo.s32 %r10, %r11, %r12, %r10;\n\
         mul.wide.u32 %d12, %r10, {}; add.s64 %d10, %d10, %d12; mul.wide.u32 %d12, %r10, 8; add.s64 %d11, %d11, %d12;\n",
        8 * operands.len().max(1)
    );
    let name = |file: File, i: usize| match file {
        File::H => format!("%h{i}"),
        File::R => format!("%r{i}"),
        File::D => format!("%d{i}"),
        File::P => format!("%p{i}"),
    };
    let mut line = instruction.to_string();
    for (i, operand) in operands.iter().enumerate() {
        let register = name(*operand, i + 1);
        text += &match operand {
            File::H => format!("ld.global.b16 {register}, [%d10+{}];\n", 8 * i),
            File::R => format!("ld.global.b32 {register}, [%d10+{}];\n", 8 * i),
            File::D => format!("ld.global.b64 {register}, [%d10+{}];\n", 8 * i),
            File::P => format!("ld.global.b32 %r13, [%d10+{}]; setp.ne.u32 {register}, %r13, 0;\n", 8 * i),
        };
        line = line.replace(["$a", "$b", "$c", "$e", "$f"][i], &register);
    }
    line = line.replace("$d", &name(result, 0));
    text += &line;
    text += match result {
        File::H => "\nst.global.b16 [%d11], %h0;",
        File::R => "\nst.global.b32 [%d11], %r0;",
        File::D => "\nst.global.b64 [%d11], %d0;",
        File::P => "\nselp.u32 %r0, 1, 0, %p0; st.global.b32 [%d11], %r0;",
    };
    text + " ret;\n}\n"
}

/// Runs one instruction on every row and gives the results, narrow ones zero-extended.
pub fn apply(instruction: &str, signature: &str, rows: &[Vec<u64>]) -> Vec<u64> {
    let text = kernel(instruction, signature);
    let mut padded = rows.to_vec();
    padded.resize(rows.len().next_multiple_of(32), rows.last().expect("a row").clone());
    let input: Vec<u8> = padded.iter().flatten().flat_map(|v| v.to_le_bytes()).collect();
    let mut device = Device::with_memory(Gpu::H100, 1 << 30);
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{instruction}: {e}\n{text}"));
    let module = device.load(module).unwrap_or_else(|e| panic!("{instruction}: {e}"));
    let (from, to) = (
        device.allocate(input.len().max(8) as u64).unwrap(),
        device.allocate(8 * padded.len() as u64).unwrap(),
    );
    device.write(from, &input).unwrap();
    device.write(to, &vec![0; 8 * padded.len()]).unwrap();
    let launch = Launch {
        grid: [padded.len() as u32 / 32, 1, 1],
        arguments: vec![from.into(), to.into()],
        ..Default::default()
    };
    let report = device.launch(&module, "t", &launch).unwrap_or_else(|e| panic!("{instruction}: {e}"));
    assert!(report.findings.is_empty(), "{instruction}: {}", report.findings[0]);
    let out = device.read(to, 8 * rows.len()).unwrap();
    out.chunks(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect()
}

/// Every result must be accepted by `accept`, which is given the operands and the result.
pub fn check_by(instruction: &str, signature: &str, rows: &[Vec<u64>], accept: impl Fn(&[u64], u64) -> bool) {
    let results = apply(instruction, signature, rows);
    for (row, got) in rows.iter().zip(results) {
        assert!(accept(row, got), "{instruction} of {row:x?} gave {got:#x}");
    }
}

/// Every result must be what `reference` makes of the operands.
pub fn check(instruction: &str, signature: &str, rows: &[Vec<u64>], reference: impl Fn(&[u64]) -> u64) {
    let results = apply(instruction, signature, rows);
    for (row, got) in rows.iter().zip(results) {
        let expected = reference(row);
        assert!(got == expected, "{instruction} of {row:x?} gave {got:#x}, not {expected:#x}");
    }
}

/// All combinations, one value of each list.
pub fn product(lists: &[&[u64]]) -> Vec<Vec<u64>> {
    lists.iter().fold(vec![vec![]], |rows, list| {
        rows.iter()
            .flat_map(|row| {
                list.iter().map(|v| row.iter().copied().chain([*v]).collect()).collect::<Vec<_>>()
            })
            .collect()
    })
}

/// A fixed sequence of bits that look random.
pub fn random(count: usize, seed: u64) -> Vec<u64> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x.wrapping_mul(0x2545_f491_4f6c_dd1d)
        })
        .collect()
}

/// The corners of integers of so many bits, and some values between.
pub fn edges(bits: u32) -> Vec<u64> {
    let mask = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
    let top = 1u64 << (bits - 1);
    let mut values = vec![
        0,
        1,
        2,
        3,
        7,
        31,
        32,
        33,
        0x55,
        top - 1,
        top,
        top + 1,
        mask - 1,
        mask,
        0x1234_5678_9abc_def0 & mask,
    ];
    values.extend(random(3, u64::from(bits)).iter().map(|v| v & mask));
    values
}

/// Low `bits` as a signed number.
pub fn signed(value: u64, bits: u32) -> i128 {
    i128::from((value << (64 - bits)) as i64 >> (64 - bits))
}

/// Low `bits` as an unsigned number.
pub fn unsigned(value: u64, bits: u32) -> i128 {
    if bits == 64 { i128::from(value) } else { i128::from(value & ((1 << bits) - 1)) }
}

/// The low `bits` of a number.
pub fn wrap(value: i128, bits: u32) -> u64 {
    if bits == 64 { value as u64 } else { value as u64 & ((1 << bits) - 1) }
}

/// The letter of the file that holds so many bits.
pub fn letter(bits: u32) -> char {
    match bits {
        64 => 'd',
        32 => 'r',
        _ => 'h',
    }
}

/// A program of its own: its entry is `t` and its parameters are all 64-bit. Each buffer is a parameter: bytes given, or a
/// count of zero bytes. Returns the buffers afterwards.
pub struct Program {
    pub device: Device,
    pub module: ptxsim::Loaded,
    pub launch: Launch,
    buffers: Vec<(u64, usize)>,
}

impl Program {
    /// `body` is everything between the braces; parameters are `p0`, `p1`, … and are in `%rd0`, `%rd1`, … at the start.
    pub fn new(body: &str, buffers: &[Vec<u8>]) -> Program {
        Program::with_module("", body, buffers)
    }

    /// The same with declarations before the entry.
    pub fn with_module(declarations: &str, body: &str, buffers: &[Vec<u8>]) -> Program {
        let parameters: Vec<String> = (0..buffers.len()).map(|i| format!(".param .u64 p{i}")).collect();
        let loads: String = (0..buffers.len()).map(|i| format!("ld.param.u64 %rd{i}, [p{i}];\n")).collect();
        let text = format!(
            "{HEADER}{declarations}\n.visible .entry t({})\n{{\n.reg .b64 %rd<40>; .reg .b32 %r<60>; .reg .f32 %f<40>; \
             .reg .b16 %h<40>; .reg .pred %p<20>; .reg .f64 %fd<20>;\n{loads}{body}\nret;\n}}\n",
            parameters.join(", ")
        );
        let mut device = Device::with_memory(Gpu::H100, 1 << 30);
        let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let module = device.load(module).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let mut places = vec![];
        for buffer in buffers {
            let at = device.allocate(buffer.len() as u64).unwrap();
            device.write(at, buffer).unwrap();
            places.push((at, buffer.len()));
        }
        let arguments = places.iter().map(|(at, _)| (*at).into()).collect();
        Program { device, module, launch: Launch { arguments, ..Default::default() }, buffers: places }
    }

    /// Threads of a CTA and CTAs.
    pub fn sized(mut self, grid: [u32; 3], block: [u32; 3]) -> Program {
        (self.launch.grid, self.launch.block) = (grid, block);
        self
    }

    /// Runs it, whatever it does wrong.
    pub fn report(&mut self) -> Report {
        self.device.launch(&self.module, "t", &self.launch).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Runs it, which must be clean, and gives all buffers.
    pub fn run(&mut self) -> Vec<Vec<u8>> {
        let report = self.report();
        assert!(report.findings.is_empty(), "{}", report.findings[0]);
        self.buffers()
    }

    /// What the buffers hold.
    pub fn buffers(&mut self) -> Vec<Vec<u8>> {
        let places = self.buffers.clone();
        places.iter().map(|(at, n)| self.device.read(*at, *n).unwrap()).collect()
    }
}

pub fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap())).collect()
}

pub fn doubles(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect()
}

pub fn bytes_of(words: impl IntoIterator<Item = u32>) -> Vec<u8> {
    words.into_iter().flat_map(u32::to_le_bytes).collect()
}
