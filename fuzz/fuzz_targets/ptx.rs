//! Any text as a PTX module: parsed, every entry decoded, and launched where it can be, within bounded steps and memory.
#![no_main]
use ptxsim::{Argument, Delivery, Device, Gpu, Launch, Module};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let Ok(module) = Module::parse(&text) else { return };
    let names: Vec<String> = module.entries().map(str::to_string).collect();
    let mut device = Device::with_memory(Gpu::A100, 16 << 20);
    let Ok(loaded) = device.load(module) else { return };
    let Ok(buffer) = device.allocate(4096) else { return };
    for name in names {
        let Ok(sizes) = loaded.parameters(&name) else { continue };
        // What has eight bytes may be an address.
        let argument = |bytes: &u32| match bytes {
            8 => Argument::from(buffer),
            bytes => Argument(vec![17; *bytes as usize]),
        };
        let launch = Launch {
            grid: [2, 1, 1],
            block: [40, 1, 1],
            shared_bytes: 1024,
            arguments: sizes.iter().map(argument).collect(),
            delivery: Delivery::Random(1),
            step_limit: 3000,
            ..Default::default()
        };
        let _ = device.launch(&loaded, &name, &launch);
    }
});
