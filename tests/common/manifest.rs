//! Launches by the manifest alone, as a program that has nothing but its JSON makes them.
#![allow(dead_code)]

use serde_json::Value;
use warploom::driver::LaunchReport;

/// A manifest as it was written.
pub struct Manifest(pub Value);

/// Sizes of a launch.
#[derive(Debug, PartialEq, Eq)]
pub struct Sizes {
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub cluster: [u32; 3],
    pub shared_bytes: u32,
}

/// An entry with a parameter for it.
pub struct Launch<'m> {
    manifest: &'m Manifest,
    pub entry: &'m Value,
    parameter: &'m [u8],
}

pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no string"))
}

pub fn array(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("{value} is no array"))
}

pub fn number(value: &Value) -> usize {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number")) as usize
}

impl Manifest {
    /// The module of an entry, and the entry.
    pub fn entry(&self, name: &str) -> (&Value, &Value) {
        let found = array(&self.0["modules"]).iter().find_map(|module| {
            let entry = array(&module["entries"]).iter().find(|entry| entry["name"] == name)?;
            Some((module, entry))
        });
        found.unwrap_or_else(|| panic!("no entry {name}"))
    }

    /// Offset and type of `name`, `name.name` or `name[index].name` in a struct; None if it has no such field.
    fn field<'m>(&'m self, of: &'m str, path: &str) -> Option<(usize, &'m str)> {
        let (mut of, mut offset) = (of, 0);
        for step in path.split('.') {
            let (name, index) = match step.split_once('[') {
                Some((name, index)) => (name, index.strip_suffix(']')?.parse::<usize>().ok()?),
                None => (step, 0),
            };
            let field = array(&self.0["structs"][of]["fields"]).iter().find(|field| field["name"] == name)?;
            let count = field.get("count").map_or(1, number);
            assert!(index < count, "{path} is out of range");
            offset += number(&field["offset"]) + index * number(&field["bytes"]) / count;
            of = text(&field["type"]);
        }
        Some((offset, of))
    }

    /// The bytes of a parameter with these fields, zeros for the others.
    pub fn pack(&self, entry: &str, fields: &[(&str, f64)]) -> Vec<u8> {
        let mut bytes = vec![0; number(&self.entry(entry).1["parameter_bytes"])];
        for &(path, value) in fields {
            bytes = self.with(entry, &bytes, path, value).expect(path);
        }
        bytes
    }

    /// A parameter with another value of a field; None if it has no such field.
    pub fn with(&self, entry: &str, parameter: &[u8], path: &str, value: f64) -> Option<Vec<u8>> {
        let (_, entry) = self.entry(entry);
        let mut bytes = parameter.to_vec();
        {
            let (offset, kind) = self.field(text(&entry["parameter"]), path)?;
            let mut put = |number: &[u8]| bytes[offset..][..number.len()].copy_from_slice(number);
            match kind {
                "f32" => put(&(value as f32).to_le_bytes()),
                "i32" => put(&(value as i32).to_le_bytes()),
                "u32" => put(&(value as u32).to_le_bytes()),
                "i64" => put(&(value as i64).to_le_bytes()),
                "u64" => put(&(value as u64).to_le_bytes()),
                other => panic!("{path} is of {other}"),
            }
        }
        Some(bytes)
    }

    /// A launch of an entry with this parameter; what the entry requires must hold.
    pub fn launch<'m>(&'m self, entry: &str, parameter: &'m [u8]) -> Launch<'m> {
        self.try_launch(entry, parameter)
            .unwrap_or_else(|required| panic!("{entry}: {required} does not hold"))
    }

    /// A launch, or what is required and does not hold.
    pub fn try_launch<'m>(&'m self, entry: &str, parameter: &'m [u8]) -> Result<Launch<'m>, &'m str> {
        let (_, entry) = self.entry(entry);
        assert_eq!(parameter.len(), number(&entry["parameter_bytes"]));
        let launch = Launch { manifest: self, entry, parameter };
        // In order: what comes first keeps what follows, and the values that it names, from dividing by 0.
        let mut required = array(&entry["requires"]).iter().map(text);
        match required.find(|required| launch.evaluate(required) == 0) {
            Some(required) => Err(required),
            None => Ok(launch),
        }
    }

    /// A launch that was made is the one that the manifest tells of.
    pub fn check(&self, report: &LaunchReport) {
        let launch = self.launch(report.entry, &report.parameter);
        let LaunchReport { entry, grid, block, shared_bytes, .. } = *report;
        assert_eq!(launch.sizes(), Sizes { grid, block, cluster: [1; 3], shared_bytes }, "{entry}");
        assert!(block.iter().product::<u32>() as usize <= number(&launch.entry["max_threads"]), "{entry}");
        assert!(shared_bytes as usize <= number(&launch.entry["max_dynamic_shared_bytes"]), "{entry}");
    }
}

impl Launch<'_> {
    pub fn sizes(&self) -> Sizes {
        let sizes = &self.entry["launch"];
        let number = |value: &Value| u32::try_from(self.evaluate(text(value))).expect("a size");
        let three = |value: &Value| [0, 1, 2].map(|i| number(&value[i]));
        Sizes {
            grid: three(&sizes["grid"]),
            block: three(&sizes["block"]),
            cluster: three(&sizes["cluster"]),
            shared_bytes: number(&sizes["dynamic_shared_bytes"]),
        }
    }

    /// An expression's value for this launch.
    pub fn evaluate(&self, text: &str) -> i64 {
        let mut reader = Reader { launch: self, rest: text };
        let value = reader.comparison();
        assert!(reader.rest.trim().is_empty(), "'{}' is left of {text}", reader.rest);
        value
    }

    /// What a constant, a value or a field is.
    fn operand(&self, path: &str) -> i64 {
        let mut values = array(&self.entry["launch"]["values"]).iter();
        if let Some(value) = values.find(|value| value["name"] == path) {
            return self.evaluate(text(&value["value"]));
        }
        if let Some(constant) = self.manifest.0["constants"].get(path) {
            return number(constant) as i64;
        }
        let found = self.manifest.field(text(&self.entry["parameter"]), path);
        let (offset, kind) = found.unwrap_or_else(|| panic!("{path} is nothing"));
        let four = || self.parameter[offset..][..4].try_into().expect("four bytes");
        match kind {
            "i32" => i32::from_le_bytes(four()).into(),
            "u32" => u32::from_le_bytes(four()).into(),
            "i64" => i64::from_le_bytes(self.parameter[offset..][..8].try_into().expect("eight bytes")),
            other => panic!("{path} is of {other}"),
        }
    }
}

struct Reader<'r> {
    launch: &'r Launch<'r>,
    rest: &'r str,
}

impl<'r> Reader<'r> {
    fn takes(&mut self, sign: &str) -> bool {
        self.rest = self.rest.trim_start();
        let rest = self.rest.strip_prefix(sign);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn comparison(&mut self) -> i64 {
        let left = self.sum();
        if self.takes("==") {
            (left == self.sum()).into()
        } else if self.takes("<=") {
            (left <= self.sum()).into()
        } else if self.takes("<") {
            (left < self.sum()).into()
        } else {
            left
        }
    }

    fn sum(&mut self) -> i64 {
        let mut left = self.product();
        loop {
            if self.takes("+") {
                left += self.product();
            } else if self.takes("-") {
                left -= self.product();
            } else {
                return left;
            }
        }
    }

    fn product(&mut self) -> i64 {
        let mut left = self.operand();
        loop {
            if self.takes("*") {
                left = left.checked_mul(self.operand()).expect("64 bits");
            } else if self.takes("/") {
                left /= self.operand();
            } else {
                return left;
            }
        }
    }

    fn operand(&mut self) -> i64 {
        if self.takes("(") {
            let value = self.comparison();
            assert!(self.takes(")"));
            return value;
        }
        let end = self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || "_.[]".contains(c)));
        let (word, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        if let Ok(number) = word.parse() {
            return number;
        }
        if !self.takes("(") {
            return self.launch.operand(word);
        }
        let mut arguments = vec![self.comparison()];
        while self.takes(",") {
            arguments.push(self.comparison());
        }
        assert!(self.takes(")"), "'{}' follows an argument", self.rest);
        match (word, &arguments[..]) {
            ("ceil_div", [a, b]) => (a + b - 1) / b,
            ("min", [a, b]) => *a.min(b),
            ("max", [a, b]) => *a.max(b),
            ("pow2_ceil", [a]) => (*a as u64).next_power_of_two() as i64,
            // Of the one that is not taken, too, the value could be computed.
            ("select", [c, a, b]) => *if *c == 0 { b } else { a },
            _ => panic!("no function {word} of {} arguments", arguments.len()),
        }
    }
}
