//! The third voter kept in an etcd (version 3), by its JSON gateway: a group has two keys.
//!
//! ```text
//! PREFIX/GROUP/record   the voter's record, as JSON; changed only where it is as it was read (compare and swap)
//! PREFIX/GROUP/vote     for whom the vote is, with a lease of the length of a vote: while it is there, it is promised
//! ```
//! What a voter decides is decided here, by whoever asks; that nobody else decided meanwhile is what etcd compares.

use super::ballot::Remote;
use crate::base::{Error, Kind, Result, Site};
use crate::format::vote::{Answer, Ask, Want};
use crate::pair::vote::{self, Record};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::time::Duration;

/// Longest answer, bytes.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// A vote of somebody else is looked at again after this time, milliseconds.
const LOOK_AGAIN_MS: u64 = 200;

/// One group's votes in an etcd.
pub struct EtcdVoter {
    http: ureq::Agent,
    /// The one that answered last is the first.
    endpoints: Vec<String>,
    key: String,
    ends: [Site; 2],
    /// Length of a vote, seconds.
    length_s: u64,
    lease: Option<i64>,
}

/// A key as it is read.
struct Kv {
    value: Vec<u8>,
    mod_revision: i64,
    lease: i64,
}

fn number(v: &Value) -> i64 {
    // The gateway writes 64 bit numbers as text, and leaves out what is 0.
    v.as_str().and_then(|s| s.parse().ok()).or(v.as_i64()).unwrap_or(0)
}

fn kv(response: &Value) -> Option<Kv> {
    let k = response.get("response_range")?.get("kvs")?.get(0)?;
    let value = STANDARD.decode(k.get("value").and_then(Value::as_str).unwrap_or_default()).unwrap_or_default();
    let field = |name| k.get(name).map_or(0, number);
    Some(Kv { value, mod_revision: field("mod_revision"), lease: field("lease") })
}

/// The record as it is kept there, for people with etcdctl as well.
fn to_json(r: &Record) -> String {
    json!({ "holder": r.holder, "term": r.term, "number": r.number, "fit": r.fit, "to": r.to }).to_string()
}

fn from_json(bytes: &[u8]) -> Option<Record> {
    let v: Value = serde_json::from_slice(bytes).ok()?;
    Some(Record {
        holder: v.get("holder")?.as_str()?.to_owned(),
        term: v.get("term")?.as_u64()?,
        number: v.get("number")?.as_u64()?,
        fit: v.get("fit")?.as_bool()?,
        to: v.get("to").and_then(Value::as_str).map(str::to_owned),
    })
}

impl EtcdVoter {
    /// For a group. `length`: of a vote, whole seconds.
    pub fn new(endpoints: &[String], prefix: &str, group: &str, ends: [Site; 2], length: Duration) -> EtcdVoter {
        let http =
            ureq::Agent::config_builder().timeout_global(Some(length / 4)).http_status_as_error(false).build().into();
        EtcdVoter {
            http,
            endpoints: endpoints.to_vec(),
            key: format!("{prefix}/{group}"),
            ends,
            length_s: length.as_secs(),
            lease: None,
        }
    }

    fn name(&self, what: &str) -> String {
        STANDARD.encode(format!("{}/{what}", self.key))
    }

    /// Asks the members in turn, until one answers.
    fn call(&mut self, path: &str, body: &Value) -> Result<Value> {
        let mut why = String::new();
        for _ in 0..self.endpoints.len() {
            let at = self.endpoints.first().cloned().unwrap_or_default();
            match self.call_at(&at, path, body) {
                Ok(v) => return Ok(v),
                Err(e) => why = format!("etcd at {at}: {e}"),
            }
            self.endpoints.rotate_left(1);
        }
        Err(Error::link(why))
    }

    fn call_at(&self, at: &str, path: &str, body: &Value) -> Result<Value> {
        let fail = |e: ureq::Error| Error::link(e.to_string());
        let mut r = self.http.post(format!("{at}{path}")).send(body.to_string()).map_err(fail)?;
        let text = r.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string().map_err(fail)?;
        if r.status() != 200 {
            return Err(Error::failed(format!("{}: {}", r.status(), text.trim())));
        }
        serde_json::from_str(&text).map_err(|e| Error::corrupt(format!("its answer is no JSON: {e}")))
    }

    /// Both keys at one moment.
    fn read(&mut self) -> Result<(Option<Kv>, Option<Kv>)> {
        let range = |key| json!({ "request_range": { "key": key } });
        let body = json!({ "success": [range(self.name("record")), range(self.name("vote"))] });
        let v = self.call("/v3/kv/txn", &body)?;
        let at = |i: usize| v.get("responses").and_then(|r| r.get(i)).and_then(kv);
        Ok((at(0), at(1)))
    }

    /// A lease that holds for the length of a vote from now on: the one there is, or a new one.
    fn lease(&mut self) -> Result<i64> {
        if let Some(id) = self.lease.take() {
            let v = self.call("/v3/lease/keepalive", &json!({ "ID": id.to_string() }))?;
            if v.get("result").and_then(|r| r.get("TTL")).map_or(0, number) > 0 {
                self.lease = Some(id);
                return Ok(id);
            }
        }
        let v = self.call("/v3/lease/grant", &json!({ "TTL": self.length_s }))?;
        let id = v.get("ID").map_or(0, number);
        if id == 0 || v.get("TTL").map_or(0, number) < self.length_s as i64 {
            return Err(Error::failed(format!("etcd gave no lease of {} s", self.length_s)));
        }
        self.lease = Some(id);
        Ok(id)
    }

    /// Writes, if both keys are as they were read.
    fn swap(&mut self, record: &Option<Kv>, vote: &Option<Kv>, writes: &[Value]) -> Result<()> {
        let as_read = |key: String, k: &Option<Kv>| {
            let revision = k.as_ref().map_or(0, |k| k.mod_revision).to_string();
            json!({ "key": key, "target": "MOD", "result": "EQUAL", "mod_revision": revision })
        };
        let compare = [as_read(self.name("record"), record), as_read(self.name("vote"), vote)];
        let v = self.call("/v3/kv/txn", &json!({ "compare": compare, "success": writes }))?;
        match v.get("succeeded").and_then(Value::as_bool) {
            Some(true) => Ok(()),
            _ => Err(Error::new(Kind::Link, "another site asked the etcd at the same time")),
        }
    }
}

impl Remote for EtcdVoter {
    fn ask(&mut self, a: &Ask) -> Result<Answer> {
        let (record, promised) = self.read()?;
        let known = match &record {
            Some(k) => Some(from_json(&k.value).ok_or_else(|| {
                Error::corrupt(format!(
                    "{}/record in the etcd is not kagami's; remove it, or use another prefix",
                    self.key
                ))
            })?),
            None => None,
        };
        let left = promised.as_ref().filter(|p| p.value != a.site.as_bytes()).map_or(0, |_| LOOK_AGAIN_MS);
        let v = vote::decide(known.as_ref(), left, (0, 0), &self.ends, a);
        if !matches!(v.answer, Answer::Granted { .. }) {
            return Ok(v.answer);
        }
        let put = |key, value: &str, lease: i64| json!({ "request_put": { "key": key, "value": STANDARD.encode(value), "lease": lease.to_string() } });
        let mut writes: Vec<Value> = v.record.iter().map(|r| put(self.name("record"), &to_json(r), 0)).collect();
        if matches!(a.want, Want::Release(_)) {
            writes.push(json!({ "request_delete_range": { "key": self.name("vote") } }));
            self.lease = None;
        } else {
            let had = self.lease;
            let id = self.lease()?;
            // Renewed, and nothing to be said.
            if writes.is_empty() && had == Some(id) && promised.as_ref().is_some_and(|p| p.lease == id) {
                return Ok(v.answer);
            }
            writes.push(put(self.name("vote"), &a.site, id));
        }
        self.swap(&record, &promised, &writes)?;
        Ok(v.answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_in_the_etcd_is_read_back() {
        for to in [None, Some("osaka".to_owned())] {
            let r = Record { holder: "tokyo".into(), term: u64::MAX, number: 7, fit: true, to };
            assert_eq!(from_json(to_json(&r).as_bytes()), Some(r));
        }
        for bad in ["", "{}", "[1]", r#"{"holder":1,"term":1,"number":1,"fit":true}"#] {
            assert_eq!(from_json(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!((number(&json!("12")), number(&json!(3)), number(&json!(null))), (12, 3, 0));
    }
}
