//! The control socket, to which only the node's user gets, and the port of the metrics, to which anybody may.

use super::bed::{Bed, SOON};
use super::case;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;

pub fn run(bed: &mut Bed, _seed: u64) {
    control(bed);
    metrics(bed);
}

fn control(bed: &mut Bed) {
    let line = |b: &[u8]| [b, b"\n"].concat();
    let deep = [vec![b'['; 50_000], vec![b']'; 10_000]].concat();
    let all: Vec<(&str, Vec<u8>, &str)> = vec![
        ("control: nothing", vec![], ""),
        ("control: an empty line", line(b""), "not a request"),
        ("control: random bytes", line(&[0xff, 0xfe, 0, 1, 2, 0x80]), "not a request"),
        ("control: another language", line(b"<xml/>"), "not a request"),
        ("control: no such command", line(b"{\"command\":\"format\"}"), "not a request"),
        ("control: a field too many", line(b"{\"command\":\"status\",\"x\":1}"), "not a request"),
        ("control: half a request", b"{\"command\":\"sta".to_vec(), "not a request"),
        ("control: 64 KiB and more", vec![b' '; 70_000], "longer than"),
        ("control: 50,000 brackets", line(&deep), "not a request"),
        ("control: a number of 1000 digits", line(&[b"{\"command\":".as_slice(), &[b'9'; 1000], b"}"].concat()), "not"),
        (
            "control: a group that is not there",
            line(br#"{"command":"umount","group":"\u0000/../x","volume":null}"#),
            "no group",
        ),
        (
            "control: a mount at a path with NUL",
            { line(br#"{"command":"mount","group":"good","volume":null,"dir":"/tmp/\u0000x"}"#) },
            "error",
        ),
        (
            "control: a leg below a device",
            { line(br#"{"command":"leg-add","group":"good","regions":["/dev/null/region"]}"#) },
            "error",
        ),
        (
            "control: a pair that is not there",
            { line(br#"{"command":"pair-delete","group":"good","pair":"../sync"}"#) },
            "error",
        ),
    ];
    for (name, bytes, answer) in all {
        case(bed, name, &[], |bed| {
            let mut s = UnixStream::connect(bed.state_dir().join("control.sock")).expect("the control socket");
            s.set_read_timeout(Some(SOON)).expect("a time-out");
            let _ = s.write_all(&bytes);
            let _ = s.shutdown(Shutdown::Write);
            let mut said = Vec::new();
            let _ = s.read_to_end(&mut said);
            let said = String::from_utf8_lossy(&said).into_owned();
            assert!(said.contains(answer), "{name}: {said}");
        });
    }
    case(bed, "control: 60 that say nothing", &[], |bed| {
        let path = bed.state_dir().join("control.sock");
        let all: Vec<_> = (0..60).filter_map(|_| UnixStream::connect(&path).ok()).collect();
        assert!(bed.pair("good").is_some(), "another one is served");
        drop(all);
    });
    case(bed, "control: an answer that is not read", &[], |bed| {
        let mut s = UnixStream::connect(bed.state_dir().join("control.sock")).expect("the control socket");
        let _ = s.write_all(b"{\"command\":\"status\"}\n");
        drop(s);
    });
}

fn metrics(bed: &mut Bed) {
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes();
    let all: Vec<(&str, Vec<u8>, &str)> = vec![
        ("metrics: nothing", vec![], ""),
        ("metrics: random bytes", vec![0xff; 300], "400"),
        ("metrics: TLS", vec![22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3], "400"),
        ("metrics: a file of the machine", get("/../../etc/passwd"), "404"),
        ("metrics: encoded dots", get("/%2e%2e/%2e%2e/etc/passwd"), "404"),
        ("metrics: a wrong encoding", get("/replica?group=%zz"), "400"),
        ("metrics: NUL", get("/replica?group=%00&lag=1"), "404"),
        ("metrics: a lag that is no time", get("/replica?group=good&lag=-1e999"), "400"),
        ("metrics: a lag beyond all time", get("/replica?group=prey&lag=99999999999999999999999d"), "400"),
        ("metrics: an order", b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello".to_vec(), "405"),
        ("metrics: HTTP/9", b"GET /metrics HTTP/9.9\r\n\r\n".to_vec(), "505"),
        ("metrics: a head of 100 KB", [b"GET /metrics HTTP/1.1\r\nX: ".as_slice(), &[b'x'; 100_000]].concat(), "431"),
        ("metrics: 10,000 parameters", get(&format!("/replica?{}", "a=b&".repeat(10_000))), "431"),
    ];
    for (name, bytes, status) in all {
        case(bed, name, &[], |bed| {
            let mut s = TcpStream::connect(("127.0.0.1", bed.metrics)).expect("the port of the metrics");
            s.set_read_timeout(Some(SOON)).expect("a time-out");
            let _ = s.write_all(&bytes);
            let _ = s.shutdown(Shutdown::Write);
            let mut said = Vec::new();
            let _ = s.read_to_end(&mut said);
            let said = String::from_utf8_lossy(&said).into_owned();
            let first = said.lines().next().unwrap_or_default();
            assert!(first.contains(status), "{name}: {first}");
            assert!(!said.contains("root:"), "{name}");
        });
    }
    case(bed, "metrics: 500 that say nothing", &[], |bed| {
        let idle = bed.usage();
        let all: Vec<_> = (0..500).filter_map(|_| TcpStream::connect(("127.0.0.1", bed.metrics)).ok()).collect();
        let now = bed.usage();
        assert!(now.threads < idle.threads + 100, "{now:?} was {idle:?}");
        drop(all);
    });
}
