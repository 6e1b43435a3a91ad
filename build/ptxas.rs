//! What the compiler says of entries: ptxas' report of machine code (`-Xptxas -v`), and the heads of entries in PTX.

/// What ptxas reports of one entry for one architecture.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub entry: String,
    /// As in `sm_90a`, without `sm_`.
    pub arch: String,
    /// Of a thread.
    pub registers: u32,
    /// Named barriers of a CTA.
    pub barriers: u32,
    /// Static shared memory of a CTA in bytes.
    pub shared_bytes: u32,
    /// Local memory of a thread in bytes, the worst of the entry and the functions it calls.
    pub stack_bytes: u32,
    /// Bytes stored and loaded by spills, likewise.
    pub spill_bytes: u32,
}

/// Reads the reports of all entries out of nvcc's output.
pub fn parse(output: &str) -> Vec<Report> {
    let mut reports: Vec<Report> = Vec::new();
    for line in output.lines() {
        let said = line.strip_prefix("ptxas info").map(|rest| rest.trim_start_matches([' ', ':']));
        if let Some(rest) = said.and_then(|said| said.strip_prefix("Compiling entry function '")) {
            let mut names = rest.split('\'');
            let (entry, arch) = (names.next().unwrap_or_default(), names.nth(1).unwrap_or_default());
            let arch = arch.strip_prefix("sm_").unwrap_or(arch);
            reports.push(Report { entry: entry.into(), arch: arch.into(), ..Report::default() });
        }
        let Some(report) = reports.last_mut() else { continue };
        // Lines of `number what, number what`; a function that is called has its own line after the entry's.
        for part in line.trim().trim_start_matches("ptxas info").trim_start_matches([' ', ':']).split(", ") {
            let mut words = part.trim_start_matches("Used ").trim_start_matches("used ").splitn(2, ' ');
            let Some(Ok(number)) = words.next().map(str::parse::<u32>) else { continue };
            match words.next().unwrap_or_default() {
                "registers" => report.registers = number,
                "barriers" => report.barriers = number,
                "bytes smem" => report.shared_bytes = number,
                "bytes stack frame" | "bytes cumulative stack size" => {
                    report.stack_bytes = report.stack_bytes.max(number)
                }
                "bytes spill stores" | "bytes spill loads" => {
                    report.spill_bytes = report.spill_bytes.max(number)
                }
                _ => {}
            }
        }
    }
    reports
}

/// What fails a build: spills, local memory, and tensor core instructions or register hints that ptxas could not keep
/// (C7508, C7510 and their kin, all of which it calls a potential performance loss).
pub fn faults(output: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for Report { entry, arch, stack_bytes, spill_bytes, .. } in parse(output) {
        if spill_bytes > 0 {
            faults.push(format!(
                "{entry} for sm_{arch} spills {spill_bytes} bytes of registers; give it fewer values to hold, or more \
                 registers through __launch_bounds__"
            ));
        } else if stack_bytes > 0 {
            faults.push(format!(
                "{entry} for sm_{arch} has {stack_bytes} bytes of local memory; index its arrays with constants only \
                 (unroll the loop) and inline what it calls"
            ));
        }
    }
    let lost = |line: &&str| {
        line.starts_with("ptxas")
            && ["Potential Performance Loss", "(C7508)", "(C7510)"].iter().any(|sign| line.contains(sign))
    };
    for line in output.lines().filter(lost) {
        let text = line.split_once(':').map_or(line, |(_, text)| text.trim());
        if !faults.iter().any(|fault| fault == text) {
            faults.push(text.into());
        }
    }
    faults
}

/// What of nvcc's output is neither ptxas' report nor empty: warnings and errors, line by line.
pub fn diagnostics(output: &str) -> Vec<&str> {
    let reported = |line: &&str| {
        line.starts_with("ptxas info")
            || line.starts_with("    ") && line.contains("bytes stack frame")
            || line.trim().is_empty()
    };
    output.lines().filter(|line| !reported(line)).collect()
}

/// The head of an entry in PTX.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    /// Most threads of a CTA, from `__launch_bounds__`; 1024 without.
    pub threads: u32,
    /// Sizes of its parameters in bytes.
    pub parameters: Vec<u32>,
}

/// Reads the heads of all entries.
pub fn entries(ptx: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut in_head = false;
    for line in ptx.lines() {
        let line = line.trim();
        let definition = line.strip_prefix(".visible ").unwrap_or(line);
        if let Some(rest) = definition.strip_prefix(".entry ") {
            let name = rest.split(['(', ' ']).next().unwrap_or_default().to_string();
            entries.push(Entry { name, threads: 1024, parameters: Vec::new() });
            in_head = true;
        }
        let Some(entry) = entries.last_mut().filter(|_| in_head) else { continue };
        if let Some(rest) = line.strip_prefix(".param ") {
            entry.parameters.push(parameter_bytes(rest.trim_end_matches(',')));
        } else if let Some(rest) = line.strip_prefix(".maxntid ").or(line.strip_prefix(".reqntid ")) {
            entry.threads = rest.split(',').filter_map(|n| n.trim().parse::<u32>().ok()).product();
        }
        in_head = !line.starts_with('{');
    }
    entries
}

/// Size of `.align 8 .b8 name[80]` or `.u64 name`.
fn parameter_bytes(declaration: &str) -> u32 {
    let length = declaration
        .rsplit_once('[')
        .and_then(|(_, rest)| rest.trim_end_matches(']').parse().ok())
        .unwrap_or(1);
    let is_type = |word: &&str| word.starts_with('.') && word.ends_with(|c: char| c.is_ascii_digit());
    let bits: u32 = declaration
        .split(' ')
        .find(is_type)
        .and_then(|word| word.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().ok())
        .unwrap_or(0);
    length * bits / 8
}
