//! Cases on the simulator.

use std::collections::HashMap;

use ptxsim::{Argument, Device, Launch, Loaded, Module, Schedule, numerics::matrix::Exact};

use crate::{Identity, Outcome, Result, Runner, cases::Case};

/// What a warp instruction limit of one-instruction kernels may be at most.
const STEP_LIMIT: u64 = 10_000_000;

/// A simulated device.
pub struct Simulator {
    device: Device,
    modules: HashMap<&'static str, std::result::Result<Loaded, String>>,
    exact: Option<Exact>,
    schedule: Schedule,
    identity: Identity,
}

impl Simulator {
    /// A simulator with that tensor-core arithmetic; None sums in f32.
    pub fn new(exact: Option<Exact>, schedule: Schedule) -> Self {
        let identity = Identity {
            device: "ptxsim".into(),
            compute_capability: None,
            driver: None,
            code: match exact {
                None => "PTX, tensor cores sum in f32".into(),
                Some(exact) => format!("PTX, tensor cores as {exact:?}'s"),
            },
            date: Identity::today(),
        };
        let device = Device::with_memory(ptxsim::Gpu::H100, 1 << 30);
        Simulator { device, modules: HashMap::new(), exact, schedule, identity }
    }

    /// The simulator that should give a device's bits.
    pub fn like(identity: &Identity) -> Self {
        let capability = identity.compute_capability.as_deref();
        let exact = capability.map(|c| if c.starts_with("8.") { Exact::Ampere } else { Exact::Hopper });
        Simulator::new(exact, Schedule::InOrder)
    }

    fn launch(&mut self, case: &Case) -> std::result::Result<Vec<u8>, String> {
        let text = |e: ptxsim::Error| format!("{}, {e}", case.source.name.replace(".cu", ".ptx"));
        let device = &mut self.device;
        let module = self
            .modules
            .entry(case.source.name)
            .or_insert_with(|| Module::parse(case.source.ptx).and_then(|m| device.load(m)).map_err(text));
        let module = module.as_ref().map_err(|e| e.clone())?;
        let input = device.allocate(case.input.len() as u64).map_err(text)?;
        let output = device.allocate(case.output_bytes() as u64).map_err(text)?;
        device.write(input, &case.input).map_err(text)?;
        device.write(output, &vec![0xff; case.output_bytes()]).map_err(text)?;
        let launch = Launch {
            grid: [case.blocks(), 1, 1],
            arguments: vec![input.into(), output.into(), Argument::from(case.n)],
            exact: self.exact,
            schedule: self.schedule,
            step_limit: STEP_LIMIT,
            ..Launch::default()
        };
        let report = device.launch(module, &case.entry, &launch);
        let bytes = device.read(output, case.output_bytes()).map_err(text)?;
        device.free(input).and_then(|()| device.free(output)).map_err(text)?;
        match report.map_err(text)?.findings.first() {
            Some(finding) => Err(format!("a finding: {finding:?}")),
            None => Ok(bytes),
        }
    }
}

impl Runner for Simulator {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn run(&mut self, case: &Case) -> Result<Outcome> {
        Ok(self.launch(case).map_or_else(Outcome::NotRun, Outcome::Output))
    }
}
