//! Throughput of a link on this machine, both transports: `cargo run --release --example link_speed [MIB]`.

use kagami::base::Result;
use kagami::format::frame::{self, FrameKind};
use kagami::net::{Addr, Identity, Link, Listener, dial};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Frames handed over with one call, bytes: as a sender of entries does.
const BATCH_BYTES: usize = 1 << 20;

fn pair(addr: &Addr) -> Result<(Link, Link)> {
    let (a, b) = (Arc::new(Identity::generate("a")?), Identity::generate("b")?);
    let l = Listener::bind(addr, &a)?;
    thread::scope(|s| {
        let t = s.spawn(|| l.accept()?.handshake());
        let d = dial(l.addr(), &b, Some(&a.key()), Duration::from_secs(5))?;
        Ok((d, t.join().expect("the accepting thread")?))
    })
}

fn one_way(addr: &Addr, name: &str, size: usize, batch: usize, total: usize) -> Result<()> {
    let (a, b) = pair(addr)?;
    let (mut rx, _keep) = a.split();
    let (_keep2, mut tx) = b.split();
    let frames = vec![frame::build(FrameKind::Entry, &[0; 40], &vec![7; size]); batch];
    let n = (total / size / batch).max(1);
    let t = Instant::now();
    thread::scope(|s| {
        let w = s.spawn(move || (0..n).try_for_each(|_| tx.send_many(&frames)));
        let mut buf = Vec::new();
        for _ in 0..n * batch {
            rx.recv(&mut buf)?;
        }
        w.join().expect("the sending thread")
    })?;
    let s = t.elapsed().as_secs_f64();
    let (frames, mib) = ((n * batch) as f64, (n * batch * size) as f64 / (1 << 20) as f64);
    println!("{name:4} {size:>8} B x {batch:<3} {:>8.0} MiB/s {:>9.0} frames/s", mib / s, frames / s);
    Ok(())
}

fn ping(addr: &Addr, name: &str) -> Result<()> {
    const ROUNDS: u32 = 20_000;
    let (a, b) = pair(addr)?;
    let f = frame::build(FrameKind::Entry, &[0; 40], &[7; 4096]);
    let (mut arx, mut atx) = a.split();
    let (mut brx, mut btx) = b.split();
    let t = Instant::now();
    thread::scope(|s| {
        let echo = s.spawn(move || {
            let mut buf = Vec::new();
            (0..ROUNDS).try_for_each(|_| brx.recv(&mut buf).and_then(|_| btx.send(&buf)))
        });
        let mut buf = Vec::new();
        (0..ROUNDS).try_for_each(|_| atx.send(&f).and_then(|()| arx.recv(&mut buf).map(|_| ())))?;
        echo.join().expect("the echoing thread")
    })?;
    println!("{name:4}     4096 B there and back {:>6.1} us", t.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS));
    Ok(())
}

fn main() -> Result<()> {
    let mib: usize = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(512);
    let path = std::env::temp_dir().join(format!("kagami-link-speed-{}", std::process::id()));
    for (name, addr) in [("unix", Addr::Unix(path)), ("tls", "127.0.0.1:0".parse()?)] {
        one_way(&addr, name, 4096, 1, mib << 20)?;
        one_way(&addr, name, 4096, BATCH_BYTES / 4096, mib << 20)?;
        one_way(&addr, name, 1 << 20, 1, mib << 20)?;
        ping(&addr, name)?;
    }
    Ok(())
}
