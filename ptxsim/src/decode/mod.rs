//! From a parsed entry to a [`Kernel`]: names to register indices, labels to program counters, opcodes to
//! operations. Start from [`kernel`]. What is not known is an error that names its line; nothing is skipped.
//!
//! One file per family of opcodes: `arithmetic` and `integer` (the tables of lane functions), `convert`, `memory`, `warp`
//! (shuffles, votes, barriers, tensor cores), `control`; `allocate` lets registers share slots.

mod allocate;
mod arithmetic;
mod control;
mod convert;
mod integer;
mod lanes;
mod memory;
mod operand;
mod warp;

use std::collections::HashMap;

use crate::{
    error::{Error, Result},
    kernel::{Class, Inst, Kernel, Op, Parameter, Pred, Reg, Routine, Value},
    parse::{Function, Instruction, Module, Space, Statement, Type, Variable},
};

/// Instructions of one kernel with all that it calls.
const INSTRUCTIONS: usize = 1 << 22;
/// Bytes of parameters that an entry may have.
const PARAMETERS: u64 = 32764;
/// Bytes of local memory a thread may have.
const LOCAL: u64 = 512 << 10;
/// Bytes of shared memory that could ever be asked for statically.
const SHARED: u64 = 1 << 20;

/// Decodes an entry and every function that it can reach.
pub(crate) fn kernel(module: &Module, name: &str) -> Result<Kernel> {
    let entry = module.functions.iter().find(|f| f.entry && f.body.is_some() && f.name == name);
    let Some(entry) = entry else {
        let names: Vec<&str> = module.entries().collect();
        let available = match names.len() {
            0 => "none".into(),
            1..=8 => names.join(", "),
            n => format!("{n}: {}, …", names[..8].join(", ")),
        };
        return Err(Error::NoEntry { name: name.into(), available });
    };
    let mut decoder = Decoder::new(module);
    decoder.entry_parameters(entry)?;
    decoder.function(entry, None)?;
    while let Some((index, function)) = decoder.pending.pop() {
        decoder.routines[index].entry = decoder.code.len() as u32;
        decoder.function(function, Some(index))?;
    }
    decoder.finish(entry)
}

/// What a name stands for in a scope.
#[derive(Clone, Copy, Debug)]
enum Binding {
    Register(Reg),
    /// A variable and its place in its space; for a module variable its number.
    Variable(Space, Value),
    Label(usize),
    /// A list of labels for brx.idx.
    Targets(usize),
}

/// `%r<1040>`: registers by number, which exist once they are used.
struct Family {
    count: u32,
    ty: Type,
    used: HashMap<u32, Reg>,
}

#[derive(Default)]
struct Frame {
    names: HashMap<String, Binding>,
    families: HashMap<String, Family>,
}

struct Decoder<'m> {
    module: &'m Module,
    scopes: Vec<Frame>,
    code: Vec<Inst>,
    reads: Vec<Reg>,
    words: u32,
    doubles: u32,
    predicates: u32,
    presets: HashMap<(bool, Value), u32>,
    preset_words: Vec<(u32, Value)>,
    preset_doubles: Vec<(u32, Value)>,
    preset_predicates: Vec<(u32, bool)>,
    always: Option<u32>,
    carry: u32,
    /// Program counters of labels, filled in as they are met.
    labels: Vec<Option<u32>>,
    targets: Vec<Vec<String>>,
    parameters: Vec<Parameter>,
    parameter_bytes: u64,
    shared: HashMap<String, u64>,
    shared_bytes: u64,
    shared_align: u64,
    dynamic_align: u64,
    local_bytes: u64,
    call_bytes: u64,
    /// Bytes of the variable at each place of call memory.
    call_sizes: HashMap<u32, u32>,
    routines: Vec<Routine>,
    /// Places in call memory that the function being decoded returns from.
    pending: Vec<(usize, &'m Function)>,
    communicates: bool,
    /// Where the code at a source place was inlined.
    inlined: HashMap<(u32, u32, u32), (u32, u32, u32)>,
    source: (u32, u32),
    line: u32,
}

/// Where call memory begins in the parameter space; the entry's own parameters are below.
pub(crate) const CALL_BASE: u64 = 1 << 16;

impl<'m> Decoder<'m> {
    fn new(module: &'m Module) -> Self {
        Decoder {
            module,
            scopes: vec![],
            code: vec![],
            reads: vec![],
            words: 0,
            doubles: 0,
            // The carry flag.
            predicates: 1,
            presets: HashMap::new(),
            preset_words: vec![],
            preset_doubles: vec![],
            preset_predicates: vec![(0, false)],
            always: None,
            carry: 0,
            labels: vec![],
            targets: vec![],
            parameters: vec![],
            parameter_bytes: 0,
            shared: HashMap::new(),
            shared_bytes: 0,
            shared_align: 16,
            dynamic_align: 16,
            local_bytes: 0,
            call_bytes: 0,
            call_sizes: HashMap::new(),
            routines: vec![],
            pending: vec![],
            communicates: false,
            inlined: HashMap::new(),
            source: (0, 0),
            line: 0,
        }
    }

    fn entry_parameters(&mut self, entry: &Function) -> Result<()> {
        let mut offset = 0u64;
        for parameter in &entry.parameters {
            offset = offset.next_multiple_of(parameter.align);
            let end = offset.saturating_add(parameter.bytes);
            if end > PARAMETERS {
                return Err(Error::syntax(
                    parameter.line,
                    format!("the parameters take more than {PARAMETERS} bytes"),
                ));
            }
            self.parameters.push(Parameter { offset: offset as u32, bytes: parameter.bytes as u32 });
            offset = end;
        }
        self.parameter_bytes = offset;
        Ok(())
    }

    fn function(&mut self, function: &'m Function, routine: Option<usize>) -> Result<()> {
        let Some(body) = &function.body else {
            return Err(Error::unsupported_because(
                function.line,
                format!("the call of {:?}", function.name),
                "the module only declares it; link the device code first",
            ));
        };
        self.scopes.push(Frame::default());
        match routine {
            None => {
                for (parameter, slot) in function.parameters.iter().zip(0..) {
                    let offset = u64::from(self.parameters[slot].offset);
                    self.bind(&parameter.name, Binding::Variable(Space::Param, Value::Param(offset)));
                }
            }
            Some(index) => {
                let places = self.routines[index].formals.clone();
                for (parameter, (offset, _)) in function.parameters.iter().zip(places) {
                    let value = Value::Param(CALL_BASE + u64::from(offset));
                    self.bind(&parameter.name, Binding::Variable(Space::Param, value));
                }
                let places = self.routines[index].results.clone();
                for (parameter, (offset, _)) in function.returns.iter().zip(places) {
                    let value = Value::Param(CALL_BASE + u64::from(offset));
                    self.bind(&parameter.name, Binding::Variable(Space::Param, value));
                }
            }
        }
        self.block(body)?;
        self.scopes.pop();
        // A body may end without ret.
        let op = if routine.is_none() { Op::Exit } else { Op::Return };
        self.push(op, Class::Control, None)
    }

    fn block(&mut self, body: &'m [Statement]) -> Result<()> {
        self.scopes.push(Frame::default());
        // Labels may be used before they stand.
        for statement in body {
            match statement {
                Statement::Label(name, line) => {
                    if self.scopes.last().is_some_and(|s| s.names.contains_key(name)) {
                        return Err(Error::syntax(*line, format!("the label {name:?} stands twice")));
                    }
                    let label = self.labels.len();
                    self.labels.push(None);
                    self.bind(name, Binding::Label(label));
                }
                Statement::Targets(name, labels) => {
                    let index = self.targets.len();
                    self.targets.push(labels.clone());
                    self.bind(name, Binding::Targets(index));
                }
                _ => {}
            }
        }
        for statement in body {
            match statement {
                Statement::Label(name, _) => {
                    if let Some(Binding::Label(label)) = self.lookup(name) {
                        self.labels[label] = Some(self.code.len() as u32);
                    }
                }
                Statement::Block(inner) => self.block(inner)?,
                Statement::Registers { ty, names, line } => self.registers(*ty, names, *line)?,
                Statement::Variable(variable) => self.variable(variable)?,
                Statement::Loc { place, inlined } => {
                    if let Some(at) = inlined {
                        self.inlined.insert(*place, *at);
                    }
                    // A finding belongs to the innermost line of the kernel's own file: not to that of a helper from
                    // a header, nor to the one line of an entry into which all of a template is inlined.
                    let mut places = vec![*place];
                    while let Some(at) = self.inlined.get(&places[places.len() - 1])
                        && inlined.is_some()
                        && places.len() < 16
                    {
                        places.push(*at);
                    }
                    let file = places[places.len() - 1].0;
                    let own = places.iter().find(|place| place.0 == file);
                    self.source = own.map_or((0, 0), |place| (place.0, place.1));
                }
                Statement::Targets(..) => {}
                Statement::Instruction(instruction) => self.instruction(instruction)?,
            }
        }
        self.scopes.pop();
        Ok(())
    }

    fn bind(&mut self, name: &str, binding: Binding) {
        self.scopes.last_mut().expect("a scope is open").names.insert(name.into(), binding);
    }

    fn new_register(&mut self, ty: Type, count: u32, line: u32) -> Result<Reg> {
        let file = match ty.bits() {
            1 => &mut self.predicates,
            64 => &mut self.doubles,
            128 => return Err(Error::unsupported(line, "a register of type .b128")),
            _ => &mut self.words,
        };
        let first = *file;
        *file = first
            .checked_add(count)
            .filter(|n| *n <= 1 << 22)
            .ok_or_else(|| Error::syntax(line, "too many registers"))?;
        Ok(match ty.bits() {
            1 => Reg::P(first),
            64 => Reg::D(first),
            _ => Reg::W(first),
        })
    }

    fn registers(&mut self, ty: Type, names: &[(String, Option<u32>)], line: u32) -> Result<()> {
        for (name, count) in names {
            match count {
                None => {
                    let register = self.new_register(ty, 1, line)?;
                    self.bind(name, Binding::Register(register));
                }
                Some(count) => {
                    if ty == Type::B128 {
                        return Err(Error::unsupported(line, "a register of type .b128"));
                    }
                    let family = Family { count: *count, ty, used: HashMap::new() };
                    self.scopes.last_mut().expect("a scope is open").families.insert(name.clone(), family);
                }
            }
        }
        Ok(())
    }

    /// A variable of a function: static shared memory, local memory, or a call's parameters.
    fn variable(&mut self, variable: &Variable) -> Result<()> {
        let too_large = |what: &str, limit: u64| {
            Error::syntax(variable.line, format!("{what} of more than {limit} bytes"))
        };
        let binding = match variable.space {
            Space::Shared => self.shared_variable(variable)?,
            Space::Local => {
                let offset = self.local_bytes.next_multiple_of(variable.align);
                self.local_bytes = offset + variable.bytes;
                if self.local_bytes > LOCAL {
                    return Err(too_large("local memory", LOCAL));
                }
                Binding::Variable(Space::Local, Value::Local(offset))
            }
            Space::Param => {
                let offset = self.call_memory(variable)?;
                Binding::Variable(Space::Param, Value::Param(CALL_BASE + u64::from(offset)))
            }
            _ => {
                return Err(Error::unsupported(
                    variable.line,
                    "a global or constant variable inside a function",
                ));
            }
        };
        self.bind(&variable.name, binding);
        Ok(())
    }

    /// A place in call memory: every parameter of every function and call has its own.
    fn call_memory(&mut self, variable: &Variable) -> Result<u32> {
        let offset = self.call_bytes.next_multiple_of(variable.align.max(8));
        self.call_bytes = offset.saturating_add(variable.bytes);
        if self.call_bytes > LOCAL {
            return Err(Error::syntax(variable.line, format!("call parameters of more than {LOCAL} bytes")));
        }
        self.call_sizes.insert(offset as u32, variable.bytes as u32);
        Ok(offset as u32)
    }

    fn shared_variable(&mut self, variable: &Variable) -> Result<Binding> {
        self.shared_align = self.shared_align.max(variable.align);
        if variable.bytes == 0 {
            self.dynamic_align = self.dynamic_align.max(variable.align);
            return Ok(Binding::Variable(Space::Shared, Value::DynamicShared));
        }
        let offset = self.shared_bytes.next_multiple_of(variable.align);
        self.shared_bytes = offset + variable.bytes;
        if self.shared_bytes > SHARED {
            return Err(Error::syntax(
                variable.line,
                format!("static shared memory of more than {SHARED} bytes"),
            ));
        }
        Ok(Binding::Variable(Space::Shared, Value::Shared(offset)))
    }

    fn lookup(&mut self, name: &str) -> Option<Binding> {
        let digits = name.bytes().rev().take_while(u8::is_ascii_digit).count();
        let (prefix, number) = name.split_at(name.len() - digits);
        // %r01 is not %r1.
        let number = if digits == 1 || !number.starts_with('0') { number.parse::<u32>().ok() } else { None };
        for level in (0..self.scopes.len()).rev() {
            if let Some(binding) = self.scopes[level].names.get(name) {
                return Some(*binding);
            }
            let Some(number) = number else { continue };
            let Some(family) = self.scopes[level].families.get(prefix) else { continue };
            if number >= family.count {
                continue;
            }
            if let Some(register) = family.used.get(&number) {
                return Some(Binding::Register(*register));
            }
            let ty = family.ty;
            let register = self.new_register(ty, 1, self.line).ok()?;
            self.scopes[level].families.get_mut(prefix)?.used.insert(number, register);
            return Some(Binding::Register(register));
        }
        self.module_variable(name)
    }

    fn module_variable(&mut self, name: &str) -> Option<Binding> {
        let index = self.module.variables.iter().position(|v| v.name == name)?;
        let variable = &self.module.variables[index];
        if variable.space != Space::Shared {
            return Some(Binding::Variable(variable.space, Value::Global(index)));
        }
        // Shared variables of the module take room only in kernels that use them.
        if let Some(offset) = self.shared.get(name) {
            return Some(Binding::Variable(Space::Shared, Value::Shared(*offset)));
        }
        let binding = self.shared_variable(variable).ok()?;
        if let Binding::Variable(_, Value::Shared(offset)) = binding {
            self.shared.insert(name.into(), offset);
        }
        Some(binding)
    }

    /// The place of a function in the kernel's table; it is decoded later.
    fn routine(&mut self, name: &str) -> Result<Option<usize>> {
        if let Some(index) = self.routines.iter().position(|r| r.name == name) {
            return Ok(Some(index));
        }
        let module = self.module;
        let Some(place) = module.function(name) else { return Ok(None) };
        let function = &module.functions[place];
        let mut places = |variables: &[Variable]| -> Result<Vec<(u32, u32)>> {
            variables.iter().map(|v| Ok((self.call_memory(v)?, v.bytes as u32))).collect()
        };
        let formals = places(&function.parameters)?;
        let results = places(&function.returns)?;
        self.routines.push(Routine { name: name.into(), index: place, entry: 0, formals, results });
        self.pending.push((self.routines.len() - 1, function));
        Ok(Some(self.routines.len() - 1))
    }

    /// Appends an instruction that computes with the registers noted by `reading`.
    fn push(&mut self, op: Op, class: Class, guard: Option<Pred>) -> Result<()> {
        self.push_reading(op, class, guard, &[])
    }

    fn push_reading(&mut self, op: Op, class: Class, guard: Option<Pred>, reads: &[Reg]) -> Result<()> {
        if self.code.len() >= INSTRUCTIONS {
            return Err(Error::syntax(
                self.line,
                format!("a kernel of more than {INSTRUCTIONS} instructions"),
            ));
        }
        let first = self.reads.len() as u32;
        self.reads.extend(reads.iter().filter(|r| **r != Reg::Sink));
        let reads = (first, self.reads.len() as u32);
        self.code.push(Inst { op, guard, class, flop: 0, reads, line: self.line, source: self.source });
        Ok(())
    }

    fn instruction(&mut self, instruction: &Instruction) -> Result<()> {
        self.line = instruction.line;
        let guard = match &instruction.guard {
            None => None,
            Some(guard) => Some(Pred { register: self.predicate(&guard.register)?, negated: guard.negated }),
        };
        let mut code = Opcode::new(instruction);
        let mut reads = vec![];
        let (op, class) = self.decode(&mut code, &mut reads)?;
        code.finish()?;
        self.push_reading(op, class, guard, &reads)?;
        if let Some(last) = self.code.last_mut() {
            last.flop = flop(code.head, &code.types);
        }
        Ok(())
    }

    fn decode(&mut self, code: &mut Opcode, reads: &mut Vec<Reg>) -> Result<(Op, Class)> {
        if let Some(found) = self.control(code, reads)? {
            return Ok(found);
        }
        if let Some(found) = self.memory(code, reads)? {
            return Ok(found);
        }
        if let Some(found) = self.warp(code, reads)? {
            return Ok(found);
        }
        if let Some(found) = self.arithmetic(code, reads)? {
            return Ok(found);
        }
        Err(code.unsupported())
    }

    /// Labels to program counters, and everything into a [`Kernel`].
    fn finish(mut self, entry: &Function) -> Result<Kernel> {
        let labels = self.labels;
        let place = |label: &mut u32, line: u32| match labels[*label as usize] {
            Some(pc) => {
                *label = pc;
                Ok(())
            }
            None => Err(Error::syntax(line, "a branch to a label that does not stand")),
        };
        for inst in &mut self.code {
            let line = inst.line;
            match &mut inst.op {
                Op::Branch { target } => place(target, line)?,
                Op::BranchTable { targets, .. } => {
                    targets.iter_mut().try_for_each(|target| place(target, line))?;
                }
                _ => {}
            }
        }
        let mut kernel = Kernel {
            name: entry.name.clone(),
            code: self.code,
            reads: self.reads,
            words: self.words,
            doubles: self.doubles,
            predicates: self.predicates,
            preset_words: self.preset_words,
            preset_doubles: self.preset_doubles,
            preset_predicates: self.preset_predicates,
            carry: self.carry,
            parameters: self.parameters,
            parameter_bytes: self.parameter_bytes as u32,
            shared_bytes: self.shared_bytes,
            shared_align: self.shared_align,
            dynamic_align: self.dynamic_align,
            local_bytes: self.local_bytes,
            call_bytes: self.call_bytes as u32,
            routines: self.routines,
            required_threads: entry.required_threads,
            max_threads: entry.max_threads,
            required_cluster: entry.required_cluster,
            communicates: self.communicates,
        };
        allocate::allocate(&mut kernel);
        Ok(kernel)
    }
}

/// Floating-point operations of one lane: two for a fused multiply-add, twice as many for pairs.
fn flop(head: &str, types: &[Type]) -> u8 {
    let each = match head {
        "add" | "sub" | "mul" | "div" => 1,
        "fma" | "mad" => 2,
        _ => 0,
    };
    match types.last() {
        Some(Type::F32 | Type::F64 | Type::F16 | Type::Bf16) => each,
        Some(Type::F16x2 | Type::Bf16x2) => 2 * each,
        _ => 0,
    }
}

/// An opcode while it is decoded: each part must be taken by someone, or the form is not supported.
struct Opcode<'a> {
    head: &'a str,
    modifiers: Vec<&'a str>,
    /// Types in the order written.
    types: Vec<Type>,
    instruction: &'a Instruction,
}

impl<'a> Opcode<'a> {
    fn new(instruction: &'a Instruction) -> Self {
        let mut parts = instruction.opcode.iter().map(String::as_str);
        let head = parts.next().unwrap_or("");
        let (mut modifiers, mut types) = (vec![], vec![]);
        for part in parts {
            match Type::named(part) {
                Some(ty) => types.push(ty),
                None => modifiers.push(part),
            }
        }
        Opcode { head, modifiers, types, instruction }
    }

    /// Whether the modifier is there; it then counts as understood.
    fn take(&mut self, modifier: &str) -> bool {
        let found = self.modifiers.iter().position(|m| *m == modifier);
        if let Some(at) = found {
            self.modifiers.remove(at);
        }
        found.is_some()
    }

    /// The one of these modifiers that is there.
    fn take_of<T: Copy>(&mut self, choices: &[(&str, T)]) -> Option<T> {
        choices.iter().find(|(name, _)| self.take(name)).map(|(_, value)| *value)
    }

    /// The last type, which nearly every opcode ends with.
    fn ty(&self) -> Result<Type> {
        self.types.last().copied().ok_or_else(|| self.unsupported())
    }

    fn line(&self) -> u32 {
        self.instruction.line
    }

    fn operand(&self, index: usize) -> Result<&'a crate::parse::Operand> {
        self.instruction.operands.get(index).ok_or_else(|| {
            Error::syntax(self.line(), format!("{} lacks operand {}", self.instruction.name(), index + 1))
        })
    }

    fn operands(&self) -> &'a [crate::parse::Operand] {
        &self.instruction.operands
    }

    fn arity(&self, range: std::ops::RangeInclusive<usize>) -> Result<()> {
        let n = self.operands().len();
        if range.contains(&n) {
            return Ok(());
        }
        Err(Error::syntax(self.line(), format!("{} with {n} operands", self.instruction.name())))
    }

    fn unsupported(&self) -> Error {
        Error::unsupported(self.line(), self.instruction.name())
    }

    fn finish(&self) -> Result<()> {
        if self.modifiers.is_empty() { Ok(()) } else { Err(self.unsupported()) }
    }
}
