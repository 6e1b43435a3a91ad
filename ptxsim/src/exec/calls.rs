//! Calls of device functions, and the functions that the CUDA runtime offers to device code.

use super::{
    Context, OUTPUT,
    access::resolve,
    cta::Env,
    fragment::{Fragment, Frame, State},
    warp::{Next, Warp, lanes_of, thread_name},
};
use crate::{
    check::Kind,
    error::{Error, Result},
    kernel::{Builtin, Call, Callee, Inst, Op},
    memory::FUNCTION_BASE,
    parse::Space,
};

/// Longest string that printf takes.
const TEXT: usize = 8192;

impl Warp {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn call(
        &mut self,
        context: &Context,
        env: &mut Env,
        current: usize,
        inst: &Inst,
        pc: u32,
        mask: u32,
        lanes: u32,
        call: &Call,
    ) -> Result<Next> {
        match call.callee {
            Callee::Builtin(builtin) => {
                self.builtin(context, env, builtin, call, pc, lanes);
                if env.trapped { Ok(Next::Yield) } else { Ok(Next::Step) }
            }
            Callee::Function(routine) => {
                let stack = self.fragments[current].stack.clone();
                self.fragments[current].mask = mask & !lanes;
                self.fragments[current].pc = pc + 1;
                self.enter(context, inst, pc, lanes, call, routine, stack)?;
                Ok(Next::Look)
            }
            Callee::Register(register) => {
                let stack = self.fragments[current].stack.clone();
                self.fragments[current].mask = mask & !lanes;
                self.fragments[current].pc = pc + 1;
                let mut left = lanes;
                while left != 0 {
                    let lane = left.trailing_zeros() as usize;
                    let target = self.d[register as usize][lane];
                    let same = lanes_of(left)
                        .fold(0, |m, l| m | u32::from(self.d[register as usize][l] == target) << l);
                    left &= !same;
                    let routine =
                        target.checked_sub(FUNCTION_BASE).filter(|at| at % 16 == 0).and_then(|at| {
                            let place = (at / 16) as usize;
                            context.kernel.routines.iter().position(|r| r.index == place)
                        });
                    let Some(routine) = routine else {
                        return Err(Error::Launch(format!(
                            "line {}: a call to {target:#x}, which is no function",
                            inst.line
                        )));
                    };
                    self.enter(context, inst, pc, same, call, routine, stack.clone())?;
                }
                Ok(Next::Look)
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn enter(
        &mut self,
        context: &Context,
        inst: &Inst,
        pc: u32,
        lanes: u32,
        call: &Call,
        routine: usize,
        mut stack: Vec<Frame>,
    ) -> Result<()> {
        let target = &context.kernel.routines[routine];
        if stack.iter().any(|frame| frame.routine == routine) {
            return Err(Error::unsupported_because(
                inst.line,
                format!("the recursive call of {:?}", target.name),
                "registers are allocated once for each function",
            ));
        }
        for ((from, n), (to, m)) in call.arguments.iter().zip(&target.formals) {
            self.copy_call(context, lanes, *from, *to, (*n).min(*m));
        }
        stack.push(Frame { call: pc, routine });
        self.fragments.push(Fragment { pc: target.entry, mask: lanes, state: State::Ready, stack, rests: 0 });
        Ok(())
    }

    pub(super) fn copy_results(&mut self, context: &Context, frame: &Frame, lanes: u32) {
        let routine = &context.kernel.routines[frame.routine];
        if let Op::Call(call) = &context.kernel.code[frame.call as usize].op {
            for ((from, n), (to, m)) in routine.results.iter().zip(&call.results) {
                self.copy_call(context, lanes, *from, *to, (*n).min(*m));
            }
        }
    }

    /// Moves bytes of call memory, written or not.
    fn copy_call(&mut self, context: &Context, lanes: u32, from: u32, to: u32, n: u32) {
        let stride = context.kernel.call_bytes as usize;
        for lane in lanes_of(lanes) {
            let (from, to) = (lane * stride + from as usize, lane * stride + to as usize);
            for i in 0..n as usize {
                let written = self.call.written.all(from + i, 1);
                let byte = self.call.bytes[from + i];
                self.call.write(to + i, &[byte], written);
            }
        }
    }

    fn argument(&self, context: &Context, lane: usize, place: (u32, u32)) -> u64 {
        let at = lane * context.kernel.call_bytes as usize + place.0 as usize;
        let mut raw = [0; 8];
        let n = place.1.min(8) as usize;
        raw[..n].copy_from_slice(&self.call.bytes[at..at + n]);
        u64::from_le_bytes(raw)
    }

    fn builtin(
        &mut self,
        context: &Context,
        env: &mut Env,
        builtin: Builtin,
        call: &Call,
        pc: u32,
        lanes: u32,
    ) {
        for lane in lanes_of(lanes) {
            let argument = |warp: &Self, i: usize| warp.argument(context, lane, call.arguments[i]);
            match builtin {
                Builtin::Vprintf => {
                    let format = self.text(context, env, lane, argument(self, 0));
                    let text = self.format(context, env, lane, &format, argument(self, 1));
                    if env.own.outcome.output.len() + text.len() <= OUTPUT {
                        env.own.outcome.output.push_str(&text);
                    }
                    if let Some((at, n)) = call.results.first() {
                        let at = lane * context.kernel.call_bytes as usize + *at as usize;
                        let value = format.matches('%').count() as u64;
                        self.call.write(at, &value.to_le_bytes()[..(*n).min(8) as usize], true);
                    }
                }
                Builtin::AssertFail => {
                    let (message, file) = (argument(self, 0), argument(self, 1));
                    let (line, function) = (argument(self, 2), argument(self, 3));
                    let [message, file, function] =
                        [message, file, function].map(|at| self.text(context, env, lane, at));
                    let (cta, warp) = (env.cta, self.index);
                    env.report(Kind::Assertion, pc, 0, || {
                        format!(
                            "{}: {file}:{line}: {function}: assertion {message:?} failed",
                            thread_name(cta, warp, lane as u32)
                        )
                    });
                    env.trapped = true;
                }
                Builtin::GraphSetConditional => {
                    let (handle, value) = (argument(self, 0), argument(self, 1));
                    env.own.outcome.conditions.push((handle, value as u32));
                }
            }
        }
    }

    /// Bytes at a generic address, as a thread sees them; None where there are none.
    fn peek(&self, context: &Context, env: &mut Env, lane: usize, address: u64, n: usize) -> Option<[u8; 8]> {
        let mut out = [0; 8];
        let (space, at) = resolve(context.global_base, Space::Generic, address);
        let bytes = match space {
            Space::Global => {
                if !env.common.view.inside(at, n as u64) {
                    return None;
                }
                env.common.view.bytes(at as usize, n)
            }
            Space::Local => {
                if at >= context.kernel.local_bytes || n as u64 > context.kernel.local_bytes - at {
                    return None;
                }
                let at = lane * context.kernel.local_bytes as usize + at as usize;
                self.local.bytes.get(at..at + n)?
            }
            Space::Shared => env.own.shared.bytes.get(at as usize..(at as usize).checked_add(n)?)?,
            _ => return None,
        };
        out[..n].copy_from_slice(bytes);
        Some(out)
    }

    fn text(&self, context: &Context, env: &mut Env, lane: usize, address: u64) -> String {
        let mut bytes = vec![];
        for i in 0..TEXT as u64 {
            match self.peek(context, env, lane, address.wrapping_add(i), 1) {
                Some([0, ..]) | None => break,
                Some([byte, ..]) => bytes.push(byte),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// C's printf with the arguments that the compiler laid out at `address`, each aligned to its size.
    fn format(&self, context: &Context, env: &mut Env, lane: usize, format: &str, address: u64) -> String {
        let mut out = String::new();
        let mut at = address;
        let mut rest = format.chars().peekable();
        let mut take = |env: &mut Env, n: u64| {
            at = at.checked_next_multiple_of(n).unwrap_or(0);
            let value = self.peek(context, env, lane, at, n as usize).map(u64::from_le_bytes);
            at = at.wrapping_add(n);
            value.unwrap_or(0)
        };
        while let Some(c) = rest.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut spec = Spec::default();
            while let Some(flag) = rest.next_if(|c| "-+ #0".contains(*c)) {
                match flag {
                    '-' => spec.left = true,
                    '+' => spec.plus = true,
                    ' ' => spec.space = true,
                    '0' => spec.zero = true,
                    _ => spec.alternate = true,
                }
            }
            let number = |rest: &mut std::iter::Peekable<std::str::Chars>,
                          env: &mut Env,
                          take: &mut dyn FnMut(&mut Env, u64) -> u64| {
                if rest.next_if_eq(&'*').is_some() {
                    return (take(env, 4) as i32).clamp(0, 1000) as usize;
                }
                let mut n = 0usize;
                while let Some(digit) = rest.next_if(char::is_ascii_digit) {
                    n = (n * 10 + digit as usize - '0' as usize).min(1000);
                }
                n
            };
            spec.width = number(&mut rest, env, &mut take);
            if rest.next_if_eq(&'.').is_some() {
                spec.precision = Some(number(&mut rest, env, &mut take));
            }
            let mut long = false;
            while let Some(length) = rest.next_if(|c| "hlLjzt".contains(*c)) {
                long |= length != 'h';
            }
            let size = if long { 8 } else { 4 };
            let Some(conversion) = rest.next() else {
                out.push('%');
                break;
            };
            match conversion {
                '%' => out.push('%'),
                'd' | 'i' => {
                    let raw = take(env, size);
                    let value = if long { raw as i64 } else { i64::from(raw as i32) };
                    spec.number(&mut out, value < 0, &value.unsigned_abs().to_string());
                }
                'u' => spec.number(&mut out, false, &take(env, size).to_string()),
                'x' => spec.number(
                    &mut out,
                    false,
                    &format!("{}{:x}", if spec.alternate { "0x" } else { "" }, take(env, size)),
                ),
                'X' => spec.number(
                    &mut out,
                    false,
                    &format!("{}{:X}", if spec.alternate { "0X" } else { "" }, take(env, size)),
                ),
                'o' => spec.number(&mut out, false, &format!("{:o}", take(env, size))),
                'p' => spec.pad(&mut out, &format!("{:#x}", take(env, 8))),
                'c' => spec.pad(&mut out, &char::from(take(env, 4) as u8).to_string()),
                's' => {
                    let address = take(env, 8);
                    let mut text = self.text(context, env, lane, address);
                    if let Some(n) = spec.precision {
                        text = text.chars().take(n).collect();
                    }
                    spec.pad(&mut out, &text);
                }
                'f' | 'F' | 'e' | 'E' | 'g' | 'G' | 'a' | 'A' => {
                    let value = f64::from_bits(take(env, 8));
                    spec.number(
                        &mut out,
                        value.is_sign_negative(),
                        &float(value.abs(), conversion, spec.precision),
                    );
                }
                other => {
                    out.push('%');
                    out.push(other);
                }
            }
            if out.len() > TEXT {
                break;
            }
        }
        out
    }
}

#[derive(Default)]
struct Spec {
    left: bool,
    plus: bool,
    space: bool,
    zero: bool,
    alternate: bool,
    width: usize,
    precision: Option<usize>,
}

impl Spec {
    fn pad(&self, out: &mut String, text: &str) {
        if self.left {
            out.push_str(&format!("{text:<width$}", width = self.width));
        } else {
            out.push_str(&format!("{text:>width$}", width = self.width));
        }
    }

    fn number(&self, out: &mut String, negative: bool, digits: &str) {
        let sign = match (negative, self.plus, self.space) {
            (true, ..) => "-",
            (_, true, _) => "+",
            (_, _, true) => " ",
            _ => "",
        };
        if self.zero && !self.left {
            let width = self.width.saturating_sub(sign.len());
            out.push_str(&format!("{sign}{digits:0>width$}"));
        } else {
            self.pad(out, &format!("{sign}{digits}"));
        }
    }
}

/// A float without its sign, as C writes it.
fn float(value: f64, conversion: char, precision: Option<usize>) -> String {
    let upper = conversion.is_ascii_uppercase();
    let text = if !value.is_finite() {
        if value.is_nan() { "nan".into() } else { "inf".into() }
    } else {
        let scientific = |precision: usize| {
            let text = format!("{value:.precision$e}");
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let exponent: i32 = exponent.parse().unwrap_or(0);
            format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
        };
        let precision = precision.unwrap_or(6);
        match conversion.to_ascii_lowercase() {
            'f' => format!("{value:.precision$}"),
            'e' => scientific(precision),
            // %a is for exact bits; e shows all that a double has.
            'a' => scientific(16),
            _ => {
                let precision = precision.max(1);
                let exponent = scientific(precision - 1);
                let power: i32 = exponent.split_once('e').and_then(|(_, e)| e.parse().ok()).unwrap_or(0);
                let strip = |text: String| {
                    if text.contains('.') {
                        text.trim_end_matches('0').trim_end_matches('.').to_string()
                    } else {
                        text
                    }
                };
                if power < -4 || power >= precision as i32 {
                    let (mantissa, rest) = exponent.split_once('e').unwrap_or((&exponent, "+00"));
                    format!("{}e{rest}", strip(mantissa.to_string()))
                } else {
                    let places = (precision as i32 - 1 - power).max(0) as usize;
                    strip(format!("{value:.places$}"))
                }
            }
        }
    };
    if upper { text.to_uppercase() } else { text }
}
