//! Recursive descent over the tokens.

use super::{
    Function, Guard, Instruction, Link, Module, Operand, Space, Statement, Type, Variable,
    lexer::{Token, tokens},
};
use crate::error::{Error, Result};

/// Blocks inside blocks; nvcc nests two or three.
const DEPTH: usize = 64;
/// Registers of one declaration; keeps `%r<4000000000>` from being believed.
const REGISTERS: u64 = 1 << 20;
/// Bytes of one module variable.
const VARIABLE: u64 = 1 << 30;

impl Module {
    /// Parses the text that nvcc hands to ptxas.
    ///
    /// # Errors
    /// [`Error::Syntax`] with the line, or [`Error::Unsupported`] for an address size other than 64.
    pub fn parse(text: &str) -> Result<Module> {
        let tokens = tokens(text)?;
        Parser { tokens: &tokens, at: 0 }.module()
    }

    /// Names of the entries, in the order in which they stand.
    pub fn entries(&self) -> impl Iterator<Item = &str> {
        self.functions.iter().filter(|f| f.entry && f.body.is_some()).map(|f| f.name.as_str())
    }
}

struct Parser<'a> {
    tokens: &'a [(Token<'a>, u32)],
    at: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Token<'a> {
        self.tokens[self.at].0
    }

    fn line(&self) -> u32 {
        self.tokens[self.at].1
    }

    fn next(&mut self) -> Token<'a> {
        let token = self.tokens[self.at].0;
        self.at = (self.at + 1).min(self.tokens.len() - 1);
        token
    }

    fn sign(&mut self, sign: char) -> bool {
        let found = self.peek() == Token::Sign(sign);
        if found {
            self.next();
        }
        found
    }

    fn expect(&mut self, sign: char) -> Result<()> {
        if self.sign(sign) { Ok(()) } else { Err(self.unexpected(&format!("{sign:?}"))) }
    }

    fn unexpected(&self, wanted: &str) -> Error {
        let found = match self.peek() {
            Token::Word(w) => format!("{w:?}"),
            Token::Int(n) => format!("the number {n}"),
            Token::F32(_) | Token::F64(_) => "a float".into(),
            Token::Text(t) => format!("the string {t:?}"),
            Token::Sign(c) => format!("{c:?}"),
            Token::End => "the end of the text".into(),
        };
        Error::syntax(self.line(), format!("expected {wanted}, found {found}"))
    }

    fn word(&mut self, what: &str) -> Result<&'a str> {
        match self.peek() {
            Token::Word(w) => {
                self.next();
                Ok(w)
            }
            _ => Err(self.unexpected(what)),
        }
    }

    fn int(&mut self, what: &str) -> Result<u64> {
        let negative = self.sign('-');
        match self.peek() {
            Token::Int(n) => {
                self.next();
                Ok(if negative { n.wrapping_neg() } else { n })
            }
            _ => Err(self.unexpected(what)),
        }
    }

    fn module(mut self) -> Result<Module> {
        let mut module =
            Module { target: String::new(), variables: vec![], functions: vec![], files: vec![] };
        loop {
            let line = self.line();
            match self.peek() {
                Token::End => return Ok(module),
                Token::Sign(';') => {
                    self.next();
                }
                Token::Word(".version") => {
                    self.next();
                    self.next();
                }
                Token::Word(".target") => {
                    self.next();
                    module.target = self.word("a target")?.into();
                    while self.sign(',') {
                        self.word("a target option")?;
                    }
                }
                Token::Word(".address_size") => {
                    self.next();
                    let bits = self.int("64")?;
                    if bits != 64 {
                        return Err(Error::unsupported(line, format!(".address_size {bits}")));
                    }
                }
                Token::Word(".file") => {
                    self.next();
                    let index = self.int("a file number")?;
                    let Token::Text(name) = self.next() else {
                        return Err(Error::syntax(line, "expected a file name"));
                    };
                    while self.sign(',') {
                        self.int("a number")?;
                    }
                    module.files.push((index, name.into()));
                }
                Token::Word(".section") => self.section()?,
                Token::Word(".visible" | ".extern" | ".weak" | ".common") => {
                    self.next();
                }
                Token::Word(".entry" | ".func") => {
                    let function = self.function()?;
                    module.functions.push(function);
                }
                Token::Word(".alias") => {
                    return Err(Error::unsupported(line, ".alias"));
                }
                Token::Word(".pragma") => self.skip_statement()?,
                Token::Word(word) if space(word).is_some() => self.variables(&mut module.variables)?,
                _ => return Err(self.unexpected("a directive, a variable or a function")),
            }
        }
    }

    fn skip_statement(&mut self) -> Result<()> {
        while !self.sign(';') {
            if self.peek() == Token::End {
                return Err(self.unexpected("';'"));
            }
            self.next();
        }
        Ok(())
    }

    /// `.section .debug_str { … }`: debugging data.
    fn section(&mut self) -> Result<()> {
        while self.peek() != Token::Sign('{') {
            if self.peek() == Token::End {
                return Err(self.unexpected("'{'"));
            }
            self.next();
        }
        while !self.sign('}') {
            if self.peek() == Token::End {
                return Err(self.unexpected("'}'"));
            }
            self.next();
        }
        Ok(())
    }

    /// `.shared .align 16 .b8 a[64], b[4];`
    fn variables(&mut self, out: &mut Vec<Variable>) -> Result<()> {
        let (space, align, ty) = self.variable_type()?;
        loop {
            out.push(self.variable(space, align, ty)?);
            if !self.sign(',') {
                break;
            }
        }
        self.expect(';')
    }

    /// Space, alignment and element type with its vector width.
    fn variable_type(&mut self) -> Result<(Space, Option<u64>, (Type, u64))> {
        let line = self.line();
        let word = self.word("a state space")?;
        let Some(space) = space(word) else {
            return Err(Error::syntax(line, format!("{word:?} is no state space of a variable")));
        };
        let (mut align, mut width) = (None, 1);
        loop {
            let line = self.line();
            match self.word("a type")? {
                ".align" => {
                    let n = self.int("an alignment")?;
                    if !n.is_power_of_two() || n > 1 << 16 {
                        return Err(Error::syntax(
                            line,
                            format!("the alignment {n} is no power of two up to 65536"),
                        ));
                    }
                    align = Some(n);
                }
                ".v2" => width = 2,
                ".v4" => width = 4,
                // `.param .u64 .ptr .global .align 16 name`: what the pointer points to.
                ".ptr" | ".global" | ".const" | ".shared" | ".local" | ".attribute" => {}
                word => {
                    let ty = word
                        .strip_prefix('.')
                        .and_then(Type::named)
                        .ok_or_else(|| Error::syntax(line, format!("{word:?} is no type")))?;
                    // A kernel's pointer parameter says after its type what it points to.
                    while let Token::Word(
                        ".ptr" | ".global" | ".const" | ".shared" | ".local" | ".align" | ".param",
                    ) = self.peek()
                    {
                        if self.word("")? == ".align" {
                            self.int("an alignment")?;
                        }
                    }
                    return Ok((space, align, (ty, width)));
                }
            }
        }
    }

    fn variable(&mut self, space: Space, align: Option<u64>, (ty, width): (Type, u64)) -> Result<Variable> {
        let line = self.line();
        let name = self.word("a name")?.to_string();
        let element = u64::from(ty.bytes()) * width;
        let mut bytes = element;
        let mut open = false;
        while self.sign('[') {
            if self.sign(']') {
                open = true;
                continue;
            }
            let count = self.int("a size")?;
            self.expect(']')?;
            bytes = bytes
                .checked_mul(count)
                .filter(|b| *b <= VARIABLE)
                .ok_or_else(|| Error::syntax(line, format!("{name:?} is larger than {VARIABLE} bytes")))?;
        }
        let (mut init, mut links) = (vec![], vec![]);
        if self.sign('=') {
            self.initializer(ty, &mut init, &mut links, 0)?;
            if open {
                bytes = init.len() as u64;
                open = false;
            }
            if init.len() as u64 > bytes {
                return Err(Error::syntax(line, format!("{name:?} has more initial values than elements")));
            }
        }
        let bytes = if open { 0 } else { bytes };
        Ok(Variable {
            name,
            space,
            align: align.unwrap_or(element.max(1).next_power_of_two()),
            bytes,
            init,
            links,
            line,
        })
    }

    fn initializer(
        &mut self,
        ty: Type,
        init: &mut Vec<u8>,
        links: &mut Vec<Link>,
        depth: usize,
    ) -> Result<()> {
        if depth > 8 {
            return Err(Error::syntax(self.line(), "initial values are nested too deep"));
        }
        if self.sign('{') {
            while !self.sign('}') {
                self.initializer(ty, init, links, depth + 1)?;
                if !self.sign(',') && self.peek() != Token::Sign('}') {
                    return Err(self.unexpected("',' or '}'"));
                }
            }
            return Ok(());
        }
        let size = ty.bytes() as usize;
        let line = self.line();
        let negative = self.sign('-');
        let value = match self.next() {
            Token::Int(n) => {
                if negative {
                    n.wrapping_neg()
                } else {
                    n
                }
            }
            Token::F32(bits) => u64::from(bits) ^ (u64::from(negative) << 31),
            Token::F64(bits) => {
                let bits = bits ^ (u64::from(negative) << 63);
                if size == 4 { u64::from((f64::from_bits(bits) as f32).to_bits()) } else { bits }
            }
            Token::Word(word) if !negative => {
                let symbol = if word == "generic" {
                    self.expect('(')?;
                    let symbol = self.word("a name")?;
                    self.expect(')')?;
                    symbol
                } else {
                    word
                };
                let signed = self.sign('+') || self.peek() == Token::Sign('-');
                let addend = if signed { self.int("an offset")? } else { 0 };
                links.push(Link { offset: init.len(), symbol: symbol.into(), addend, bytes: size });
                0
            }
            _ => return Err(Error::syntax(line, "expected an initial value")),
        };
        init.extend_from_slice(&value.to_le_bytes()[..size.min(8)]);
        if size > 8 {
            init.extend_from_slice(&[0; 8]);
        }
        Ok(())
    }

    fn function(&mut self) -> Result<Function> {
        let line = self.line();
        let entry = self.word("")? == ".entry";
        let returns = if self.peek() == Token::Sign('(') { self.parameters()? } else { vec![] };
        let name = self.word("a function's name")?.to_string();
        let parameters = if self.peek() == Token::Sign('(') { self.parameters()? } else { vec![] };
        let mut function = Function {
            name,
            entry,
            parameters,
            returns,
            body: None,
            max_threads: None,
            required_threads: None,
            required_cluster: None,
            line,
        };
        loop {
            match self.peek() {
                Token::Sign(';') => {
                    self.next();
                    return Ok(function);
                }
                Token::Sign('{') => {
                    self.next();
                    function.body = Some(self.block(0)?);
                    return Ok(function);
                }
                Token::Word(word @ (".maxntid" | ".reqntid" | ".reqnctapercluster")) => {
                    self.next();
                    let mut sizes = [1; 3];
                    for (i, size) in sizes.iter_mut().enumerate() {
                        if i > 0 && !self.sign(',') {
                            break;
                        }
                        let n = self.int("a size")?;
                        *size = u32::try_from(n)
                            .map_err(|_| Error::syntax(line, format!("{word} {n} is too large")))?;
                    }
                    match word {
                        ".maxntid" => function.max_threads = Some(sizes),
                        ".reqntid" => function.required_threads = Some(sizes),
                        _ => function.required_cluster = Some(sizes),
                    }
                }
                Token::Word(".minnctapersm" | ".maxnctapersm" | ".maxnreg" | ".maxclusterrank") => {
                    self.next();
                    self.int("a number")?;
                }
                Token::Word(
                    ".noreturn" | ".explicitcluster" | ".blocksareclusters" | ".unique" | ".attribute",
                ) => {
                    self.next();
                }
                Token::Word(".pragma") => self.skip_statement()?,
                _ => return Err(self.unexpected("'{', ';' or a directive of the function")),
            }
        }
    }

    fn parameters(&mut self) -> Result<Vec<Variable>> {
        self.expect('(')?;
        let mut out = vec![];
        while !self.sign(')') {
            if self.peek() == Token::Word(".reg") {
                return Err(Error::unsupported(self.line(), "a function's .reg parameter"));
            }
            let (space, align, ty) = self.variable_type()?;
            if space != Space::Param {
                return Err(self.unexpected("a .param"));
            }
            out.push(self.variable(space, align, ty)?);
            if !self.sign(',') && self.peek() != Token::Sign(')') {
                return Err(self.unexpected("',' or ')'"));
            }
        }
        Ok(out)
    }

    /// Statements up to the closing brace.
    fn block(&mut self, depth: usize) -> Result<Vec<Statement>> {
        if depth > DEPTH {
            return Err(Error::syntax(self.line(), "blocks are nested too deep"));
        }
        let mut out = vec![];
        loop {
            let line = self.line();
            match self.peek() {
                Token::Sign('}') => {
                    self.next();
                    return Ok(out);
                }
                Token::Sign(';') => {
                    self.next();
                }
                Token::Sign('{') => {
                    self.next();
                    out.push(Statement::Block(self.block(depth + 1)?));
                }
                Token::Word(".loc") => {
                    self.next();
                    let place = self.place()?;
                    let mut inlined = None;
                    while self.sign(',') {
                        // function_name label [+ offset], or inlined_at file line column
                        if self.word("an attribute")? == "inlined_at" {
                            inlined = Some(self.place()?);
                        } else {
                            self.word("a label")?;
                            if self.sign('+') {
                                self.int("an offset")?;
                            }
                        }
                    }
                    out.push(Statement::Loc { place, inlined });
                }
                Token::Word(".pragma") => self.skip_statement()?,
                Token::Word(".reg") => {
                    self.next();
                    let mut word = self.word("a type")?;
                    if matches!(word, ".v2" | ".v4") {
                        return Err(Error::unsupported(line, "a vector register"));
                    }
                    word = word.strip_prefix('.').unwrap_or(word);
                    let ty = Type::named(word)
                        .ok_or_else(|| Error::syntax(line, format!("{word:?} is no register type")))?;
                    let mut names = vec![];
                    loop {
                        let name = self.word("a register's name")?.to_string();
                        let count = if self.sign('<') {
                            let n = self.int("a count")?;
                            self.expect('>')?;
                            if n > REGISTERS {
                                return Err(Error::syntax(
                                    line,
                                    format!("{n} registers are more than {REGISTERS}"),
                                ));
                            }
                            Some(n as u32)
                        } else {
                            None
                        };
                        names.push((name, count));
                        if !self.sign(',') {
                            break;
                        }
                    }
                    self.expect(';')?;
                    out.push(Statement::Registers { ty, names, line });
                }
                Token::Word(word) if space(word).is_some() => {
                    let mut variables = vec![];
                    self.variables(&mut variables)?;
                    out.extend(variables.into_iter().map(Statement::Variable));
                }
                Token::Word(word) if self.tokens[self.at + 1].0 == Token::Sign(':') => {
                    self.next();
                    self.next();
                    match self.peek() {
                        Token::Word(".branchtargets" | ".calltargets") => {
                            self.next();
                            let mut targets = vec![];
                            loop {
                                targets.push(self.word("a label")?.to_string());
                                if !self.sign(',') {
                                    break;
                                }
                            }
                            self.expect(';')?;
                            out.push(Statement::Targets(word.into(), targets));
                        }
                        Token::Word(".callprototype") => {
                            self.skip_statement()?;
                            out.push(Statement::Targets(word.into(), vec![]));
                        }
                        _ => out.push(Statement::Label(word.into(), line)),
                    }
                }
                Token::Word(_) | Token::Sign('@') => {
                    out.push(Statement::Instruction(self.instruction()?));
                }
                _ => return Err(self.unexpected("an instruction, a label or '}'")),
            }
        }
    }

    /// File, line and column.
    fn place(&mut self) -> Result<(u32, u32, u32)> {
        let mut number = || Ok(self.int("a number")?.min(u64::from(u32::MAX)) as u32);
        Ok((number()?, number()?, number()?))
    }

    fn instruction(&mut self) -> Result<Instruction> {
        let line = self.line();
        let guard = if self.sign('@') {
            let negated = self.sign('!');
            Some(Guard { register: self.word("a predicate")?.into(), negated })
        } else {
            None
        };
        let opcode: Vec<String> = self.word("an opcode")?.split('.').map(str::to_string).collect();
        let mut operands = vec![];
        if !self.sign(';') {
            loop {
                operands.push(self.operand(0)?);
                if self.sign(';') {
                    break;
                }
                // Inline assembly may leave the last semicolon of a block out.
                if self.peek() == Token::Sign('}') {
                    break;
                }
                self.expect(',')?;
            }
        }
        Ok(Instruction { guard, opcode, operands, line })
    }

    fn operand(&mut self, depth: usize) -> Result<Operand> {
        let first = self.single(depth)?;
        if self.sign('|') {
            let second = self.single(depth)?;
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        Ok(first)
    }

    fn single(&mut self, depth: usize) -> Result<Operand> {
        if depth > 4 {
            return Err(Error::syntax(self.line(), "operands are nested too deep"));
        }
        match self.peek() {
            Token::Sign('[') => {
                self.next();
                let base = self.operand(depth + 1)?;
                let (base, offset) = match base {
                    Operand::Offset(name, offset) => (Operand::Name(name), offset),
                    base => (base, 0),
                };
                if self.sign(',') {
                    // Coordinates of a texture or a tensor map.
                    self.operand(depth + 1)?;
                    while self.sign(',') {
                        self.operand(depth + 1)?;
                    }
                    self.expect(']')?;
                    return Ok(Operand::Coordinates);
                }
                self.expect(']')?;
                Ok(Operand::Address(Box::new(base), offset))
            }
            Token::Sign(open @ ('{' | '(')) => {
                self.next();
                let close = if open == '{' { '}' } else { ')' };
                let mut items = vec![];
                while !self.sign(close) {
                    items.push(self.operand(depth + 1)?);
                    if !self.sign(',') && self.peek() != Token::Sign(close) {
                        return Err(self.unexpected("',' or the end of the list"));
                    }
                }
                Ok(if open == '{' { Operand::Vector(items) } else { Operand::List(items) })
            }
            Token::Sign('!') => {
                self.next();
                Ok(Operand::Not(self.word("a predicate")?.into()))
            }
            Token::Sign('-') => {
                self.next();
                match self.next() {
                    Token::Int(n) => Ok(Operand::Int(n.wrapping_neg())),
                    Token::F32(bits) => Ok(Operand::F32(bits ^ 1 << 31)),
                    Token::F64(bits) => Ok(Operand::F64(bits ^ 1 << 63)),
                    _ => Err(self.unexpected("a number")),
                }
            }
            Token::Sign('~') => {
                self.next();
                Ok(Operand::Int(!self.int("a number")?))
            }
            Token::Int(n) => {
                self.next();
                Ok(Operand::Int(n))
            }
            Token::F32(bits) => {
                self.next();
                Ok(Operand::F32(bits))
            }
            Token::F64(bits) => {
                self.next();
                Ok(Operand::F64(bits))
            }
            Token::Word(word) => {
                self.next();
                if self.sign('+') {
                    return Ok(Operand::Offset(word.into(), self.int("an offset")? as i64));
                }
                if self.peek() == Token::Sign('-') {
                    return Ok(Operand::Offset(word.into(), self.int("an offset")? as i64));
                }
                Ok(Operand::Name(word.into()))
            }
            _ => Err(self.unexpected("an operand")),
        }
    }
}

fn space(word: &str) -> Option<Space> {
    Some(match word {
        ".global" => Space::Global,
        ".const" => Space::Const,
        ".shared" => Space::Shared,
        ".local" => Space::Local,
        ".param" => Space::Param,
        _ => return None,
    })
}
