//! The devices under the kernels: what every one of them must do. The simulator is always tested, a GPU where
//! WARPLOOM_DEVICE names one (cuda:0), and what talks to GPUs also against a driver of our own (tests/stub/driver.c).
#![cfg(feature = "cuda")]

use std::{
    io::Write,
    process::{Command, Output},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use half::bf16;
use rayon::prelude::*;
use warploom::{
    Error, Result,
    checkpoint::Dtype,
    driver::{
        Buffer, Cuda, Download, Driver, Event, Family, Launch, Module, Policy, ProductShape, Simulator,
        Stream,
        interop::{
            self,
            cudarc::{
                self,
                driver::{CudaContext, result::ctx},
            },
        },
        open,
    },
};

fn drivers() -> Vec<Arc<dyn Driver>> {
    let mut drivers: Vec<Arc<dyn Driver>> = vec![Arc::new(Simulator::new(Policy::default()))];
    if let Ok(name) = std::env::var("WARPLOOM_DEVICE") {
        drivers.push(open(&name).unwrap_or_else(|e| panic!("{e}")));
    }
    drivers
}

/// Bytes that tell their places.
fn pattern(bytes: usize, seed: u64) -> Vec<u8> {
    let word = |i: usize| (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15 ^ seed).rotate_left(29) as u8;
    (0..bytes).map(word).collect()
}

fn read(stream: &Stream, buffer: &Buffer) -> Vec<u8> {
    let mut data = vec![0; buffer.bytes()];
    stream.download(buffer.view(), &mut data).unwrap();
    data
}

/// Longer than all that a driver may hold of uploads on their way.
const LONG: usize = (20 << 20) + 17;

#[test]
fn memory_holds_what_was_written() {
    for driver in drivers() {
        let stream = Stream::new(&driver).unwrap();
        for bytes in [0, 1, 255, 4096, (256 << 10) + 1, LONG] {
            let data = pattern(bytes, 1);
            let mut buffer = Buffer::from_slice(&stream, &data).unwrap();
            assert_eq!((buffer.bytes(), buffer.view().address() % 256), (bytes, 0));
            assert!(read(&stream, &buffer) == data, "{bytes} bytes");
            let Some(half) = bytes.checked_sub(bytes / 2).filter(|half| *half < bytes) else { continue };
            stream.upload(&mut buffer.view_mut().slice(half..bytes), &data[..bytes - half]).unwrap();
            let mut back = vec![0; bytes - half];
            stream.download(buffer.view().slice(half..bytes), &mut back).unwrap();
            assert!(back == data[..bytes - half]);
            assert!(read(&stream, &buffer)[..half] == data[..half]);
        }
        let words = [1.5_f32, f32::NAN, -0.0];
        let buffer = Buffer::from_slice(&stream, &words).unwrap();
        let mut back = [0_f32; 3];
        stream.download(buffer.view(), &mut back).unwrap();
        assert_eq!(back.map(f32::to_bits), words.map(f32::to_bits));
    }
}

#[test]
fn a_stream_works_in_order() {
    for driver in drivers() {
        let stream = Stream::new(&driver).unwrap();
        let [mut a, mut b] = [1024; 2].map(|bytes| Buffer::new(&driver, bytes).unwrap());
        stream.fill(&mut a.view_mut(), 7).unwrap();
        stream.copy(a.view(), &mut b.view_mut()).unwrap();
        stream.fill(&mut a.view_mut().slice(0..512), 9).unwrap();
        stream.copy(a.view().slice(256..768), &mut b.view_mut().slice(512..1024)).unwrap();
        stream.fill(&mut a.view_mut(), 0).unwrap();
        let expected = [vec![7; 512], vec![9; 256], vec![7; 256]].concat();
        assert_eq!(read(&stream, &b), expected);
        assert_eq!(read(&stream, &a), vec![0; 1024]);

        // Uploads have been read when they return, however many there are: what they read changes at once.
        let mut all = Buffer::new(&driver, 100 * 64).unwrap();
        let mut data = vec![0_u8; 64];
        for i in 0..100 {
            data.fill(i);
            stream.upload(&mut a.view_mut().slice(0..64), &data).unwrap();
            let at = 64 * usize::from(i);
            stream.copy(a.view().slice(0..64), &mut all.view_mut().slice(at..at + 64)).unwrap();
        }
        let expected: Vec<u8> = (0..100).flat_map(|i| [i; 64]).collect();
        assert_eq!(read(&stream, &all), expected);
        let mut long = pattern(LONG, 2);
        let expected = long.clone();
        let buffer = Buffer::from_slice(&stream, &long).unwrap();
        long.fill(0);
        assert!(read(&stream, &buffer) == expected);
    }
}

#[test]
fn what_is_dropped_stays_until_work_is_done() {
    for driver in drivers() {
        let stream = Stream::new(&driver).unwrap();
        let mut kept = Buffer::new(&driver, 4096).unwrap();
        for i in 0..20 {
            let other = Stream::new(&driver).unwrap();
            let mut passing = Buffer::new(&driver, 4096).unwrap();
            other.fill(&mut passing.view_mut(), i).unwrap();
            other.copy(passing.view(), &mut kept.view_mut()).unwrap();
            let end = Event::new(&driver).unwrap();
            end.record(&other).unwrap();
            stream.wait(&end).unwrap();
            drop((other, passing, end));
            assert_eq!(read(&stream, &kept), vec![i; 4096]);
        }
    }
}

#[test]
fn events_order_streams_and_tell_time() {
    for driver in drivers() {
        let [first, second] = [(); 2].map(|()| Stream::new(&driver).unwrap());
        let [begin, end, never] = [(); 3].map(|()| Event::new(&driver).unwrap());
        let [mut a, mut b] = [LONG; 2].map(|bytes| Buffer::new(&driver, bytes).unwrap());
        let data = pattern(LONG, 3);
        begin.record(&first).unwrap();
        first.upload(&mut a.view_mut(), &data).unwrap();
        end.record(&first).unwrap();
        second.wait(&end).unwrap();
        second.copy(a.view(), &mut b.view_mut()).unwrap();
        assert!(read(&second, &b) == data);
        end.synchronize().unwrap();
        let ms = end.elapsed_ms(&begin).unwrap();
        assert!((0.0..60e3).contains(&ms), "{ms}");
        assert!(matches!(never.elapsed_ms(&begin), Err(Error::Device { .. })));
    }
}

#[test]
fn a_graph_does_again_what_was_captured() {
    for driver in drivers() {
        let stream = Stream::new(&driver).unwrap();
        let [mut a, mut b, mut c] = [300; 3].map(|bytes| Buffer::new(&driver, bytes).unwrap());
        let [begin, end] = [(); 2].map(|()| Event::new(&driver).unwrap());
        stream.fill(&mut a.view_mut(), 1).unwrap();
        stream.fill(&mut b.view_mut(), 2).unwrap();
        stream.fill(&mut c.view_mut(), 3).unwrap();
        let graph = stream
            .capture(|| {
                begin.record(&stream)?;
                stream.copy(b.view(), &mut c.view_mut())?;
                stream.copy(a.view(), &mut b.view_mut())?;
                stream.fill(&mut a.view_mut().slice(0..100), 4)?;
                // Nothing of it, and so nothing happens.
                stream.copy(c.view().slice(5..5), &mut a.view_mut().slice(9..9))?;
                stream.fill(&mut a.view_mut().slice(300..300), 4)?;
                // Memory may come and go meanwhile.
                drop(Buffer::new(&driver, 1000)?);
                end.record(&stream)
            })
            .unwrap();
        assert_eq!([&a, &b, &c].map(|x| read(&stream, x)), [1, 2, 3].map(|x| vec![x; 300]));
        for (round, expected) in [[1, 2], [4, 1], [4, 4]].into_iter().enumerate() {
            // SAFETY: the buffers that it copies are there.
            unsafe { stream.launch_graph(&graph) }.unwrap();
            assert_eq!([&b, &c].map(|x| read(&stream, x)[0]), expected, "round {round}");
            assert!(end.elapsed_ms(&begin).unwrap() >= 0.0);
            if round == 0 {
                stream.upload(&mut a.view_mut(), &[4_u8; 300]).unwrap();
            }
        }
        let other = Stream::new(&driver).unwrap();
        // SAFETY: as above.
        unsafe { other.launch_graph(&graph) }.unwrap();
        other.synchronize().unwrap();
        let nothing = stream.capture(|| Ok(())).unwrap();
        // SAFETY: it addresses nothing.
        unsafe { stream.launch_graph(&nothing) }.unwrap();
        stream.synchronize().unwrap();
    }
}

#[test]
fn a_capture_does_not_mind_who_else_uses_the_device() {
    // Opened twice; a GPU's context is the same.
    for (driver, other) in drivers().iter().zip(drivers()) {
        let stream = Stream::new(driver).unwrap();
        let mut kept = Buffer::new(driver, 64).unwrap();
        let passing = Buffer::new(&other, 64).unwrap();
        let graph = stream.capture(|| {
            drop(passing);
            stream.fill(&mut kept.view_mut(), 1)
        });
        // SAFETY: the buffer that it fills is there.
        unsafe { stream.launch_graph(&graph.unwrap()) }.unwrap();
        assert_eq!(read(&stream, &kept), vec![1; 64]);
    }
}

#[test]
fn a_capture_refuses_what_cannot_be_done_again() {
    for driver in drivers() {
        let stream = Stream::new(&driver).unwrap();
        let mut buffer = Buffer::new(&driver, 64).unwrap();
        stream.fill(&mut buffer.view_mut(), 5).unwrap();
        let mut refused = |why: &str, work: &mut dyn FnMut(&mut Buffer) -> Result<()>| {
            let failed = stream.capture(|| {
                stream.fill(&mut buffer.view_mut(), 6)?;
                work(&mut buffer)
            });
            match failed.err() {
                Some(e @ Error::Device { .. }) => assert!(e.to_string().contains(why), "{e}"),
                other => panic!("{other:?}"),
            }
            // The capture has ended, nothing of it happened, and the stream goes on.
            assert_eq!(read(&stream, &buffer), vec![5; 64]);
        };
        refused("cannot be captured", &mut |buffer| stream.download(buffer.view(), &mut [0_u8; 64]));
        refused("cannot be captured", &mut |buffer| stream.upload(&mut buffer.view_mut(), &[1_u8; 64]));
        refused("", &mut |_| stream.synchronize());
        refused("", &mut |_| stream.capture(|| Ok(())).map(drop));
        let failed = stream.capture(|| Err(Error::argument("x", "not today")));
        assert_eq!(failed.err().unwrap().to_string(), "x: not today");
        let idle = Stream::new(&driver).unwrap();
        assert!(matches!(idle.end_capture(), Err(Error::Device { .. })));
    }
}

#[test]
fn sizes_must_agree() {
    for driver in drivers() {
        let stream = Stream::new(&driver).unwrap();
        let mut buffer = Buffer::from_slice(&stream, &[1_u8; 16]).unwrap();
        let other = Buffer::new(&driver, 32).unwrap();
        let refused = |done: Result<()>, numbers: &str| match done {
            Err(e @ Error::Argument { .. }) => assert!(e.to_string().contains(numbers), "{e}"),
            other => panic!("{other:?}"),
        };
        refused(stream.upload(&mut buffer.view_mut(), &[0_u8; 17]), "17 bytes into 16");
        refused(stream.upload(&mut buffer.view_mut(), &[0_u32; 3]), "12 bytes into 16");
        refused(stream.download(buffer.view(), &mut [0_u8; 15]), "bytes into");
        refused(stream.copy(other.view(), &mut buffer.view_mut()), "32 bytes into 16");
        let mut within =
            |from: std::ops::Range<usize>, to| stream.copy_within(&mut buffer.view_mut(), from, to);
        refused(within(8..17, 0), "8..17 to 0 within 16 bytes");
        refused(within(0..8, 9), "0..8 to 9");
        refused(within(0..8, 7), "0..8 to 7");
        refused(within(0..1, usize::MAX), "0..1 to 18446744073709551615");
        refused(within(std::ops::Range { start: 10, end: 3 }, 5), "10..3 to 5");
        refused(within(std::ops::Range { start: 100, end: 3 }, 5), "100..3 to 5");
        within(0..8, 8).unwrap();
        assert_eq!(read(&stream, &buffer), vec![1; 16]);
        match Buffer::new(&driver, 1 << 50) {
            Err(e @ Error::Capacity { .. }) => assert!(e.to_string().contains("1125899906842624"), "{e}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn threads_share_a_device() {
    for driver in drivers() {
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let driver = &driver;
                scope.spawn(move || {
                    let stream = Stream::new(driver).unwrap();
                    for round in 0..10 {
                        let data = pattern(100_000, 10 * thread + round);
                        let a = Buffer::from_slice(&stream, &data).unwrap();
                        let mut b = Buffer::new(driver, data.len()).unwrap();
                        let graph = stream.capture(|| stream.copy(a.view(), &mut b.view_mut())).unwrap();
                        // SAFETY: both buffers are there.
                        unsafe { stream.launch_graph(&graph) }.unwrap();
                        assert!(read(&stream, &b) == data, "thread {thread}, round {round}");
                    }
                });
            }
        });
    }
}

/// Writes the sizes of the launch: CTAs, threads, dynamic shared memory. A GPU's driver compiles it.
const SIZES: &str = "
.version 7.0
.target sm_80
.address_size 64
.visible .entry sizes(.param .align 8 .b8 p[8])
{
    .reg .b32 %r<8>;
    .reg .b64 %rd<3>;
    ld.param.u64 %rd1, [p];
    cvta.to.global.u64 %rd2, %rd1;
    mov.u32 %r1, %nctaid.x;
    mov.u32 %r2, %nctaid.y;
    mov.u32 %r3, %nctaid.z;
    mov.u32 %r4, %ntid.x;
    mov.u32 %r5, %ntid.y;
    mov.u32 %r6, %ntid.z;
    mov.u32 %r7, %dynamic_smem_size;
    st.global.u32 [%rd2], %r1;
    st.global.u32 [%rd2+4], %r2;
    st.global.u32 [%rd2+8], %r3;
    st.global.u32 [%rd2+12], %r4;
    st.global.u32 [%rd2+16], %r5;
    st.global.u32 [%rd2+20], %r6;
    st.global.u32 [%rd2+24], %r7;
    ret;
}
";
const FAMILY: Family =
    Family { name: "sizes", fatbin: SIZES.as_bytes(), fatbin_ptx: "80", ptx: SIZES, entries: &[] };

/// Launches the kernel above on a stream, which it leaves to the caller.
fn launch(driver: &Arc<dyn Driver>, change: impl FnOnce(&mut Launch)) -> Result<([u32; 12], Stream)> {
    launch_of(driver, "sizes", change)
}

fn launch_of(
    driver: &Arc<dyn Driver>,
    entry: &'static str,
    change: impl FnOnce(&mut Launch),
) -> Result<([u32; 12], Stream)> {
    let stream = Stream::new(driver)?;
    let function = Module::load(driver, &FAMILY)?.function(entry)?;
    let mut out = Buffer::new(driver, 48)?;
    stream.fill(&mut out.view_mut(), 0)?;
    let parameter = out.view().address().to_le_bytes();
    let mut launch = Launch { block: [1; 3], ..Launch::new(&parameter) };
    change(&mut launch);
    // SAFETY: the entry's parameter is an address, here of all that it writes.
    let launched = unsafe { stream.launch(&function, &launch) };
    let mut sizes = [0; 12];
    let read = stream.download(out.view(), &mut sizes);
    launched.and(read)?;
    Ok((sizes, stream))
}

/// A thread of rayon's that waits takes up other tasks: here ones that want the same device.
#[test]
fn tasks_of_rayon_launch_on_one_device() {
    let (done, outcome) = mpsc::channel();
    thread::spawn(move || {
        let driver: Arc<dyn Driver> = Arc::new(Simulator::new(Policy::default()));
        let function = Module::load(&driver, &FAMILY).unwrap().function("sizes").unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(8).build().unwrap();
        pool.install(|| {
            (0..400).into_par_iter().for_each(|task| {
                if task % 2 == 1 {
                    return thread::sleep(Duration::from_micros(300));
                }
                let (stream, out) = (Stream::new(&driver).unwrap(), Buffer::new(&driver, 48).unwrap());
                let parameter = out.view().address().to_le_bytes();
                let launch = Launch { grid: [64, 1, 1], ..Launch::new(&parameter) };
                // Every CTA writes the same.
                // SAFETY: the entry's parameter is an address, here of all that it writes.
                let _ = unsafe { stream.launch(&function, &launch) };
            });
        });
        done.send(()).unwrap();
    });
    outcome.recv_timeout(Duration::from_secs(120)).expect("tasks that wait for each other");
}

#[test]
fn pinned_memory_is_bounded_and_read_as_what_it_is() {
    for driver in drivers() {
        // The stub's memory has no such bounds.
        let sizes = if driver.ordinal().is_none() { &[1 << 62, usize::MAX][..] } else { &[] };
        for &bytes in sizes {
            let error = Download::new(&driver, bytes).err().unwrap();
            assert!(matches!(error, Error::Capacity { .. } | Error::Device { .. }), "{error}");
        }
        let mut download = Download::new(&driver, 12).unwrap();
        assert!(matches!(download.wait::<u64>(), Err(Error::Argument { .. })));
        assert_eq!(download.wait::<u32>().unwrap(), [0; 3]);
    }
}

#[test]
fn what_is_of_another_device_is_refused() {
    for driver in drivers() {
        let other: Arc<dyn Driver> = Arc::new(Simulator::new(Policy::default()));
        let [here, there] = [&driver, &other].map(|driver| Stream::new(driver).unwrap());
        let refused = |done: Result<()>, what: &str| match done {
            Err(Error::Argument { argument, reason, .. }) => {
                assert_eq!(argument, what);
                assert!(reason.contains("of another device"), "{reason}");
            }
            done => panic!("{what}: {done:?}"),
        };
        let function = Module::load(&other, &FAMILY).unwrap().function("sizes").unwrap();
        let mut out = Buffer::new(&driver, 48).unwrap();
        let parameter = out.view().address().to_le_bytes();
        // SAFETY: the entry's parameter is an address, here of all that it writes.
        refused(unsafe { here.launch(&function, &Launch::new(&parameter)) }, "kernel");
        let [mine, event] = [&driver, &other].map(|driver| Event::new(driver).unwrap());
        mine.record(&here).unwrap();
        refused(event.record(&here), "event");
        event.record(&there).unwrap();
        refused(here.wait(&event), "event");
        refused(event.elapsed_ms(&mine).map(|_| ()), "event");
        let graph = there.capture(|| Ok(())).unwrap();
        // SAFETY: nothing is in it.
        refused(unsafe { here.launch_graph(&graph) }, "graph");
        let mut download = Download::new(&other, 48).unwrap();
        refused(download.start(&here, out.view()), "download");
        // Memory is told by its address: no simulated device has another's.
        if driver.ordinal().is_some() {
            continue;
        }
        let foreign = Buffer::from_slice(&there, &[7u8; 48]).unwrap();
        assert!(here.copy(foreign.view(), &mut out.view_mut()).is_err());
        let parameter = foreign.view().address().to_le_bytes();
        let function = Module::load(&driver, &FAMILY).unwrap().function("sizes").unwrap();
        // SAFETY: as above, but for the device.
        let launched = unsafe { here.launch(&function, &Launch::new(&parameter)) };
        assert!(launched.unwrap_err().to_string().contains("in no allocation"));
        assert_eq!(read(&there, &foreign), [7; 48]);
    }
}

#[test]
fn a_kernel_is_launched_as_it_was_asked() {
    for driver in drivers() {
        let limit = driver.properties().shared_bytes;
        assert!(limit >= 99 << 10 && driver.properties().multiprocessors > 0);
        let (sizes, _) = launch(&driver, |launch| launch.shared_bytes = 96 << 10).unwrap();
        assert_eq!(sizes[..7], [1, 1, 1, 1, 1, 1, 96 << 10]);
        let stub = driver.properties().name == "Stub GPU";
        if stub {
            // It alone tells of clusters and of permission to begin early.
            // It is a Hopper, but what comes of older PTX does not wait. That holds for each function by itself.
            for (entry, early) in [("sizes", 1), ("old", 0), ("sizes", 1)] {
                let (sizes, _) = launch_of(&driver, entry, |launch| {
                    launch.grid = [4, 5, 6];
                    launch.block = [32, 3, 2];
                    launch.cluster = [2, 1, 3];
                    launch.programmatic = true;
                })
                .unwrap();
                assert_eq!(sizes, [4, 5, 6, 32, 3, 2, 0, 0, 2, 1, 3, early], "{entry}");
            }
        }
        match launch(&driver, |launch| launch.grid[0] = 0) {
            Err(e @ Error::Device { .. }) => assert!(e.to_string().contains("launching sizes"), "{e}"),
            other => panic!("{:?}", other.map(|(sizes, _)| sizes)),
        }
        let module = Module::load(&driver, &FAMILY).unwrap();
        assert!(module.function("sizes").unwrap().resident(128, 1024).unwrap() >= 1);
        match module.function("nowhere") {
            Err(e @ Error::Device { .. }) => assert!(e.to_string().contains("nowhere"), "{e}"),
            other => panic!("{other:?}"),
        }
    }
}

/// What the caller's thread does next still goes to the caller's GPU.
#[test]
fn calls_leave_the_context_as_it_was() {
    for driver in drivers().into_iter().filter(|driver| driver.ordinal().is_some()) {
        let stub = driver.properties().name == "Stub GPU";
        // The stub takes any address for a context.
        let others = if stub { &[0, 9][..] } else { &[0] };
        for other in others.iter().map(|&other| other as cudarc::driver::sys::CUcontext) {
            // SAFETY: none, or of the stub, which never looks at it.
            unsafe { ctx::set_current(other) }.unwrap();
            let current = || ctx::get_current().unwrap().unwrap_or(std::ptr::null_mut());
            let stream = Stream::new(&driver).unwrap();
            let buffer = Buffer::from_slice(&stream, &pattern(1000, 3)).unwrap();
            assert_eq!(read(&stream, &buffer), pattern(1000, 3));
            assert!(launch(&driver, |launch| launch.grid[0] = 0).is_err());
            drop((buffer, stream));
            assert_eq!(current(), other);
            assert!(open("cuda:0").is_ok());
            assert_eq!(current(), other);
        }
    }
}

/// Slices and streams of cudarc's, which does its own bookkeeping beside this crate's.
#[test]
fn cudarc_lends_its_memory_and_streams() {
    let Some(driver) = drivers().into_iter().find(|driver| driver.ordinal().is_some()) else { return };
    let context = CudaContext::new(driver.ordinal().unwrap()).unwrap();
    let stream = context.new_stream().unwrap();
    let own = interop::device(&context).unwrap();
    // The stub reads it when the copy comes to its turn.
    let numbers = pattern(1000, 7);
    let x = stream.clone_htod(&numbers).unwrap();
    let mut y = stream.alloc_zeros::<u8>(1000).unwrap();
    {
        let on = interop::stream(&own, &stream).unwrap();
        let x = interop::read(&x, &stream);
        let mut y = interop::write(&mut y, &stream);
        assert_eq!((x.view().bytes(), y.view_mut().bytes()), (1000, 1000));
        on.copy(x.view(), &mut y.view_mut()).unwrap();
    }
    let copy = stream.clone_dtoh(&y).unwrap();
    stream.synchronize().unwrap();
    assert_eq!(copy, numbers);
    let simulator: Arc<dyn Driver> = Arc::new(Simulator::new(Policy::default()));
    match interop::stream(&simulator, &stream) {
        Err(e @ Error::Argument { .. }) => assert!(e.to_string().contains("one of the simulator"), "{e}"),
        other => panic!("{:?}", other.err()),
    }
}

/// Products by the device's library: rows apart, added to or not, the same bits each time.
#[test]
fn a_library_multiplies() {
    let (rows, inputs, features) = (5, 40, 24);
    let (x_stride, weight_stride, out_stride) = (48, 40, 56);
    let numbers = |count: usize, seed: u64| -> Vec<bf16> {
        pattern(count, seed).into_iter().map(|byte| bf16::from_f32(f32::from(byte) / 64.0 - 2.0)).collect()
    };
    let (x, weight) = (numbers(rows * x_stride, 1), numbers(features * weight_stride, 2));
    let before = numbers(rows * out_stride, 3);
    let shape = ProductShape {
        dtype: Dtype::Bf16,
        rows,
        inputs,
        features,
        x_stride,
        weight_stride,
        out_stride,
        add: false,
    };
    for driver in drivers() {
        let products = match driver.clone().products() {
            Ok(products) => products,
            Err(e) => {
                assert!(e.to_string().contains("there is no cuBLASLt (libcublasLt.so.13)"), "{e}");
                continue;
            }
        };
        let stream = Stream::new(&driver).unwrap();
        let [x_there, weight_there] = [&x, &weight].map(|x| Buffer::from_slice(&stream, x).unwrap());
        for add in [false, true] {
            let shape = ProductShape { add, ..shape };
            let ways = products.ways(&shape, 4).unwrap();
            assert!(!ways.is_empty(), "{} has a way", products.name());
            let mut out = Buffer::from_slice(&stream, &before).unwrap();
            for way in &ways {
                let mut run = || {
                    stream.upload(&mut out.view_mut(), &before).unwrap();
                    // SAFETY: the buffers are as large as the shape says.
                    unsafe {
                        stream.product(&**way, x_there.view(), weight_there.view(), &mut out.view_mut())
                    }
                    .unwrap();
                    let mut got = vec![bf16::ZERO; rows * out_stride];
                    stream.download(out.view(), &mut got).unwrap();
                    got
                };
                let got = run();
                assert_eq!(got, run());
                for (i, got) in got.iter().enumerate() {
                    let (row, n) = (i / out_stride, i % out_stride);
                    let product = |k: usize| {
                        f64::from(x[row * x_stride + k].to_f32())
                            * f64::from(weight[n * weight_stride + k].to_f32())
                    };
                    let want = match n < features {
                        true => {
                            (0..inputs).map(product).sum::<f64>() + if add { before[i].to_f64() } else { 0.0 }
                        }
                        false => before[i].to_f64(),
                    };
                    let error = (got.to_f64() - want).abs();
                    assert!(error <= want.abs() / 256.0 + 1e-4, "{}: {got} is not {want}", products.name());
                }
            }
        }
        let shape = ProductShape { dtype: Dtype::F32, ..shape };
        assert!(products.ways(&shape, 4).is_ok_and(|ways| ways.is_empty()));
    }
}

#[test]
fn a_device_is_opened_by_its_name() {
    assert!(open("sim").is_ok());
    for name in ["", "gpu", "cuda0", "cuda:", "cuda:x", "cuda:-1", "CUDA"] {
        let error = open(name).err().unwrap();
        assert!(matches!(error, Error::Argument { .. }), "{name}: {error}");
    }
    // No machine has so many; without a driver, that is said.
    let error = open("cuda:4000").err().unwrap().to_string();
    assert!(error.starts_with("device cuda:4000: "), "{error}");
}

/// On a machine without a driver: the reason, rather than a crash. On one with a GPU, all of it in short.
#[test]
fn the_first_gpu_works_or_says_why_not() {
    let gpu: Arc<dyn Driver> = match Cuda::new(0) {
        Ok(gpu) => Arc::new(gpu),
        Err(e) => {
            let said = e.to_string();
            assert!(matches!(e, Error::Device { .. }) && said.starts_with("device cuda:0: "), "{said}");
            let causes = ["no NVIDIA driver", "CUDA", "no such GPU", "compute capability"];
            assert!(causes.iter().any(|cause| said.contains(cause)), "{said}");
            return;
        }
    };
    assert!(gpu.properties().capability >= (8, 0) && gpu.properties().l2_bytes > 0);
    let stream = Stream::new(&gpu).unwrap();
    let [begin, end] = [(); 2].map(|()| Event::new(&gpu).unwrap());
    let a = Buffer::from_slice(&stream, &pattern(1000, 5)).unwrap();
    let mut b = Buffer::new(&gpu, 1000).unwrap();
    begin.record(&stream).unwrap();
    let graph = stream.capture(|| {
        stream.fill(&mut b.view_mut(), 1)?;
        stream.copy(a.view().slice(0..500), &mut b.view_mut().slice(500..1000))
    });
    // SAFETY: both buffers are there.
    unsafe { stream.launch_graph(&graph.unwrap()) }.unwrap();
    end.record(&stream).unwrap();
    assert_eq!(read(&stream, &b), [vec![1; 500], pattern(500, 5)].concat());
    assert!(end.elapsed_ms(&begin).unwrap() >= 0.0);
}

/// What is said when a GPU or its driver fails, for `the_stub_driver_is_driven_rightly`.
#[test]
fn what_goes_wrong() {
    if std::env::var_os("STUB").is_none() {
        return;
    }
    let failed = open("cuda:0").and_then(|gpu| {
        let (_, stream) = launch(&gpu, |_| {})?;
        stream.synchronize()
    });
    println!("said: {}.", failed.err().map_or("nothing".into(), |e| e.to_string()));
}

/// Everything above once more with a driver that puts all work off, and what is said when it fails.
#[test]
fn the_stub_driver_is_driven_rightly() {
    if std::env::var_os("STUB").is_some() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let sources = std::env::var("WARPLOOM_SOURCES").unwrap_or(env!("CARGO_MANIFEST_DIR").into());
    let source = ["driver.c", "cublaslt.c"].map(|name| format!("{sources}/tests/stub/{name}"));
    // The first names that are looked for: one library for both.
    let library = home.path().join("libcuda.so");
    let compiled =
        Command::new("cc").args(["-O1", "-shared", "-fPIC", "-o"]).arg(&library).args(source).status();
    if !cfg!(target_os = "linux") || compiled.is_err() {
        skipped("the stub driver's test: no C compiler named cc, or not Linux");
        return;
    }
    assert!(compiled.unwrap().success());
    #[cfg(unix)]
    std::os::unix::fs::symlink("libcuda.so", home.path().join("libcublasLt.so")).unwrap();
    let run = |stub: &str, arguments: &[&str]| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env("LD_LIBRARY_PATH", home.path()).env("STUB", stub).args(arguments);
        let Output { status, stdout, stderr } = command.env("WARPLOOM_DEVICE", "cuda:0").output().unwrap();
        let said = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
        assert!(status.success(), "{stub}: {said}");
        said
    };
    run("", &[]);
    for (stub, causes) in [
        ("", &["nothing"][..]),
        ("old", &["CUDA 12.8 at most; the kernels need 13.0, so driver 580.65.06 or newer"]),
        ("none", &["there is no such GPU; the driver sees 0"]),
        ("small", &["Stub GPU has compute capability 7.5; the kernels need 8.0 or higher"]),
        ("binary", &["sizes.cu: CUDA_ERROR_NO_BINARY_FOR_GPU", "this GPU is 9.0", "WARPLOOM_CUDA_ARCHS=90a"]),
        (
            "ptx",
            &["sizes.cu: CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "WARPLOOM_CUDA_ARCHS=90a", "update the driver"],
        ),
        ("fault", &["a download: CUDA_ERROR_ILLEGAL_ADDRESS (the stub's words)", "context is lost"]),
    ] {
        let said = run(stub, &["--exact", "what_goes_wrong", "--nocapture"]);
        for cause in causes {
            assert!(said.contains("said: device cuda:0: ") || stub.is_empty(), "{stub}: {said}");
            assert!(said.contains(cause), "{stub}: {said}");
        }
    }
}

#[expect(clippy::explicit_write, reason = "print macros are held back while a test passes")]
fn skipped(what: &str) {
    writeln!(std::io::stderr(), "skipped: {what}").unwrap();
}
