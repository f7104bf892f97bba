//! Sockets: connections within a machine and between machines, and what goes wrong with them.

use super::seeds;
use crate::harness::Test;
use crate::sched::{self, MachineId};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

pub const TESTS: [Test; 9] = [
    ("sockets::a_pair_carries_bytes_both_ways", a_pair_carries_bytes_both_ways),
    ("sockets::connections_between_machines_carry_much", connections_between_machines_carry_much),
    ("sockets::a_killed_machine_ends_its_connections", a_killed_machine_ends_its_connections),
    ("sockets::half_open_connections_say_nothing", half_open_connections_say_nothing),
    ("sockets::a_cut_line_holds_what_is_sent", a_cut_line_holds_what_is_sent),
    ("sockets::times_for_sending_receiving_and_connecting_are_kept", times_are_kept),
    ("sockets::lines_are_slow_trickle_and_turn_bits", lines_are_slow_trickle_and_turn_bits),
    ("sockets::lost_connections_and_replays", lost_connections_and_replays),
    ("sockets::listeners_and_shutdown", listeners_and_shutdown),
];

fn two() -> (MachineId, MachineId) {
    (sched::machine("a", &[("", 1 << 20)]), sched::machine("b", &[("", 1 << 20)]))
}

/// A server on machine `m` that sends back what it gets, until it is killed.
fn echo(m: MachineId) {
    sched::spawn_on(
        m,
        "echo",
        Box::new(|| {
            let l = UnixListener::bind("/sim/b/sock").unwrap();
            for c in l.incoming() {
                let mut c = c.unwrap();
                thread::spawn(move || {
                    let mut buf = [0u8; 10_000];
                    while let Ok(n) = c.read(&mut buf) {
                        if n == 0 || c.write_all(&buf[..n]).is_err() {
                            break;
                        }
                    }
                });
            }
        }),
    );
    while !sched::with_disk(m, "", |d| d.exists(b"sock")) {
        sched::sleep(Duration::from_millis(1));
    }
    sched::sleep(Duration::from_millis(5));
}

fn dial() -> UnixStream {
    UnixStream::connect("/sim/b/sock").unwrap()
}

/// Runs `f` on a machine, to its end.
fn on(m: MachineId, f: impl FnOnce() + Send + 'static) {
    sched::join(sched::spawn_on(m, "tester", Box::new(f)));
}

fn round(c: &mut UnixStream, what: &[u8]) {
    c.write_all(what).unwrap();
    let mut back = vec![0; what.len()];
    c.read_exact(&mut back).unwrap();
    assert_eq!(back, what);
}

fn a_pair_carries_bytes_both_ways() -> Result<(), String> {
    seeds(4, || {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        let t = thread::spawn(move || {
            let mut all = Vec::new();
            b.read_to_end(&mut all).unwrap();
            b.write_all(b"thanks").unwrap();
            all
        });
        let data: Vec<u8> = (0..10_000_000u32).map(|i| (i * 7) as u8).collect();
        a.write_all(&data).unwrap();
        a.shutdown(std::net::Shutdown::Write).unwrap();
        let mut said = String::new();
        a.read_to_string(&mut said).unwrap();
        assert_eq!(said, "thanks");
        assert!(t.join().unwrap() == data);
        assert_eq!(a.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
        let (mut a, b) = UnixStream::pair().unwrap();
        drop(b);
        assert_eq!(a.read(&mut [0; 4]).unwrap(), 0);
        assert_eq!(a.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
        // Closed with something unread: the other end is told.
        let (a, mut b) = UnixStream::pair().unwrap();
        b.write_all(b"never read").unwrap();
        drop(a.try_clone().unwrap());
        drop(a);
        assert_eq!(b.read(&mut [0; 4]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    })
}

fn connections_between_machines_carry_much() -> Result<(), String> {
    seeds(4, || {
        let (a, b) = two();
        echo(b);
        on(a, || {
            let all: Vec<_> = (0..5u32)
                .map(|i| {
                    thread::spawn(move || {
                        let mut c = dial();
                        for n in 0..20u32 {
                            round(&mut c, &(0..n * 1000 + 1).map(|k| (k * i) as u8).collect::<Vec<_>>());
                        }
                    })
                })
                .collect();
            all.into_iter().for_each(|t| t.join().unwrap());
            let t = Instant::now();
            round(&mut dial(), b"x");
            // A connection and a question take the line four times.
            assert!(
                t.elapsed() > Duration::from_micros(80) && t.elapsed() < Duration::from_millis(20),
                "{:?}",
                t.elapsed()
            );
        });
    })
}

fn a_killed_machine_ends_its_connections() -> Result<(), String> {
    seeds(6, || {
        let (a, b) = two();
        echo(b);
        let t = sched::spawn_on(
            a,
            "client",
            Box::new(|| {
                let mut c = dial();
                round(&mut c, b"hello");
                assert_eq!(c.read(&mut [0; 8]).unwrap(), 0);
                assert!(c.write_all(b"x").is_err());
                assert_eq!(UnixStream::connect("/sim/b/sock").unwrap_err().kind(), ErrorKind::ConnectionRefused);
            }),
        );
        sched::sleep(Duration::from_millis(50));
        assert!(sched::alive(t));
        sched::kill(b);
        sched::join(t);
        // The file is there still; it must go before another can listen.
        on(b, || {
            assert_eq!(UnixListener::bind("/sim/b/sock").unwrap_err().kind(), ErrorKind::AddrInUse);
            std::fs::remove_file("/sim/b/sock").unwrap();
        });
        echo(b);
        on(a, || round(&mut dial(), b"again"));
    })
}

fn half_open_connections_say_nothing() -> Result<(), String> {
    seeds(4, || {
        let (a, b) = two();
        echo(b);
        sched::with_net(|n| n.all_of(b, |p| p.half_open = true));
        let t = sched::spawn_on(
            a,
            "client",
            Box::new(|| {
                let mut c = dial();
                round(&mut c, b"hello");
                c.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
                let t = Instant::now();
                assert_eq!(c.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
                assert!(t.elapsed() >= Duration::from_secs(3));
                c.write_all(b"into the void").unwrap();
                assert_eq!(c.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
                // In the end there is no room.
                c.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
                assert_eq!(c.write_all(&vec![0; 8 << 20]).unwrap_err().kind(), ErrorKind::WouldBlock);
            }),
        );
        sched::sleep(Duration::from_millis(50));
        sched::power_cut(b, &crate::disk::Cut { all_of_unsynced: true, ..Default::default() });
        sched::join(t);
        // Without power nobody answers; with it, nobody listens.
        on(a, || {
            let s = kagami::os::sock::connect_unix(Path::new("/sim/b/sock"), Duration::from_secs(2));
            assert_eq!(s.unwrap_err().kind(), ErrorKind::WouldBlock);
        });
        on(b, || ());
        on(a, || {
            assert_eq!(UnixStream::connect("/sim/b/sock").unwrap_err().kind(), ErrorKind::ConnectionRefused);
        });
    })
}

fn a_cut_line_holds_what_is_sent() -> Result<(), String> {
    seeds(4, || {
        let (a, b) = two();
        echo(b);
        let t = sched::spawn_on(
            a,
            "client",
            Box::new(|| {
                let mut c = dial();
                round(&mut c, b"hello");
                sched::sleep(Duration::from_millis(100));
                c.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
                c.write_all(b"held").unwrap();
                assert_eq!(c.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
                let t = Instant::now();
                let s = kagami::os::sock::connect_unix(Path::new("/sim/b/sock"), Duration::from_secs(2));
                assert_eq!(s.unwrap_err().kind(), ErrorKind::WouldBlock);
                assert!(t.elapsed() >= Duration::from_secs(2) && t.elapsed() < Duration::from_secs(3));
                c.set_read_timeout(None).unwrap();
                let mut back = [0; 4];
                c.read_exact(&mut back).unwrap();
                assert_eq!(&back, b"held");
            }),
        );
        sched::sleep(Duration::from_millis(50));
        sched::with_net(|n| n.policy(b, a).cut = true);
        sched::sleep(Duration::from_secs(5));
        assert!(sched::alive(t));
        sched::with_net(|n| n.policy(b, a).cut = false);
        sched::join(t);
        assert!(sched::now_ns() < 7_000_000_000);
    })
}

fn times_are_kept() -> Result<(), String> {
    seeds(4, || {
        let (a, b) = two();
        on(b, || {
            let l = UnixListener::bind("/sim/b/sock").unwrap();
            // Nobody accepts: the queue fills, then connecting waits.
            let held: Vec<_> = (0..128).map(|_| dial()).collect();
            let t = Instant::now();
            let s = kagami::os::sock::connect_unix(Path::new("/sim/b/sock"), Duration::from_millis(700));
            assert_eq!(s.unwrap_err().kind(), ErrorKind::WouldBlock);
            assert!(t.elapsed() >= Duration::from_millis(700));
            let mut c = &held[0];
            c.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
            let t = Instant::now();
            assert!(c.write_all(&vec![0; 16 << 20]).is_err());
            assert!(t.elapsed() >= Duration::from_millis(300) && t.elapsed() < Duration::from_secs(1));
            c.set_nonblocking(true).unwrap();
            assert_eq!(c.read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
            assert_eq!(c.read_timeout().unwrap(), None);
            assert_eq!(c.write_timeout().unwrap(), Some(Duration::from_millis(300)));
            drop(l);
            assert_eq!(held[1].set_read_timeout(None).map(|()| (&held[1]).read(&mut [0]).unwrap_or(0)).unwrap(), 0);
        });
        on(a, || drop(UnixStream::connect("/sim/b/sock").unwrap_err()));
    })
}

fn lines_are_slow_trickle_and_turn_bits() -> Result<(), String> {
    seeds(4, || {
        let (a, b) = two();
        echo(b);
        let took = move || {
            let t = sched::now_ns();
            on(a, || round(&mut dial(), &[7; 5000]));
            Duration::from_nanos(sched::now_ns() - t)
        };
        assert!(took() < Duration::from_millis(50));
        sched::with_net(|n| n.policy(a, b).latency_ns = (300_000_000, 300_000_001));
        let t = took();
        assert!(t > Duration::from_millis(600) && t < Duration::from_millis(700), "{t:?}");
        // A line that is long carries many at a time.
        let begun = sched::now_ns();
        on(a, || {
            let mut c = dial();
            (0..50).for_each(|_| c.write_all(&[1; 10]).unwrap());
            c.read_exact(&mut [0; 500]).unwrap();
        });
        assert!(sched::now_ns() - begun < 800_000_000);
        sched::with_net(|n| n.policy(a, b).heal());
        sched::with_net(|n| n.policy(a, b).bytes_per_s = 10_000);
        assert!(took() > Duration::from_millis(500));
        sched::with_net(|n| n.policy(a, b).heal());
        sched::with_net(|n| n.policy(b, a).trickle = Some((100, 10_000_000)));
        assert!(took() > Duration::from_millis(480));
        sched::with_net(|n| n.policy(b, a).heal());
        sched::with_net(|n| n.policy(a, b).flip = 1.0);
        on(a, || {
            let mut c = dial();
            c.write_all(&[0; 100]).unwrap();
            let mut back = [0u8; 100];
            c.read_exact(&mut back).unwrap();
            assert_eq!(back.iter().map(|b| b.count_ones()).sum::<u32>(), 1);
        });
        sched::with_net(|n| n.policy(a, b).heal());
        assert!(took() < Duration::from_millis(50));
    })
}

fn lost_connections_and_replays() -> Result<(), String> {
    seeds(6, || {
        let (a, b) = two();
        echo(b);
        let t = sched::spawn_on(
            a,
            "client",
            Box::new(|| {
                let mut c = dial();
                round(&mut c, b"hello");
                assert_eq!(c.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
                assert!(c.write_all(b"x").is_err());
                round(&mut dial(), b"a new one");
            }),
        );
        sched::sleep(Duration::from_millis(50));
        sched::with_net(|n| n.lose_connections(a, b));
        sched::join(t);
        sched::with_net(|n| n.policy(a, b).lose = 1.0);
        on(a, || {
            let mut c = dial();
            // The bytes are gone with the connection.
            drop(c.write(b"x"));
            assert!(matches!(c.read(&mut [0]), Err(_) | Ok(0)));
        });
        sched::with_net(|n| n.policy(a, b).heal());
        sched::kill(b);
        sched::with_net(|n| n.policy(a, b).duplicate = 1.0);
        on(b, || drop(std::fs::remove_file("/sim/b/sock")));
        let server = sched::spawn_on(
            b,
            "server",
            Box::new(|| {
                let l = UnixListener::bind("/sim/b/sock").unwrap();
                for _ in 0..2 {
                    let mut all = Vec::new();
                    l.accept().unwrap().0.read_to_end(&mut all).unwrap();
                    assert_eq!(all, b"once");
                }
            }),
        );
        sched::sleep(Duration::from_millis(20));
        on(a, || dial().write_all(b"once").unwrap());
        sched::join(server);
    })
}

fn listeners_and_shutdown() -> Result<(), String> {
    seeds(4, || {
        let (_, b) = two();
        on(b, || {
            let l = UnixListener::bind("/sim/b/sock").unwrap();
            assert_eq!(l.local_addr().unwrap().as_pathname(), Some(Path::new("/sim/b/sock")));
            let m = l.try_clone().unwrap();
            let t = thread::spawn(move || m.accept().map(drop).unwrap_err().kind());
            thread::sleep(Duration::from_millis(10));
            use std::os::fd::AsFd;
            kagami::os::sock::shutdown(l.as_fd()).unwrap();
            assert_eq!(t.join().unwrap(), ErrorKind::InvalidInput);
            assert_eq!(UnixStream::connect("/sim/b/sock").unwrap_err().kind(), ErrorKind::ConnectionRefused);
            // One who reads is woken when another thread shuts the socket down.
            let (a, _b) = UnixStream::pair().unwrap();
            assert_eq!(kagami::os::sock::peer_uid(a.as_fd()).unwrap(), 0);
            let mut c = a.try_clone().unwrap();
            let t = thread::spawn(move || c.read(&mut [0; 3]).unwrap());
            thread::sleep(Duration::from_millis(10));
            kagami::os::sock::shutdown(a.as_fd()).unwrap();
            assert_eq!(t.join().unwrap(), 0);
        });
    })
}
