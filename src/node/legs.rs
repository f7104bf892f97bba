//! Legs of a mirror group at one site: besides the leg in use, each further leg is a replica that receives, in this
//! process, over the same protocol as a remote one: a leg is added, lost and brought back like a secondary (MS-8, MS-21).

use super::incoming::{Admission, Incoming};
use super::pairs::Pair;
use super::receiving::Receiving;
use super::sender::SenderCtx;
use super::serve;
use super::status::LegStatus;
use crate::base::{Epoch, Error, Result, Seq};
use crate::format::msg::Hello;
use crate::net::{Closer, Link};
use crate::pair::chain::Chain;
use crate::pair::state::{Mode, State};
use crate::store::receive::Receiver;
use crate::store::replica::{Place, Replica};
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A leg that is not the one in use.
pub struct Leg {
    /// Its number in the mirror group.
    pub number: u32,
    /// Its pair with the leg in use.
    pub pair: Arc<Pair>,
    group: String,
    place: Place,
    link_timeout: Duration,
    receiving: Mutex<Option<Receiving>>,
    link: Mutex<Option<Closer>>,
    why: Mutex<Option<String>>,
}

impl Leg {
    /// The leg at a place; opened when the first link needs it, and again after it was lost.
    pub fn new(state_dir: &Path, number: u32, place: Place, link_timeout: Duration) -> Result<Arc<Leg>> {
        let name = format!("leg{number}");
        let pair = Arc::new(Pair::load(state_dir, &place.group, &name, Mode::Sync, &name)?);
        Ok(Arc::new(Leg {
            number,
            pair,
            group: place.group.clone(),
            place,
            link_timeout,
            receiving: Mutex::new(None),
            link: Mutex::new(None),
            why: Mutex::new(None),
        }))
    }

    /// Over a replica that was in use and failed.
    pub fn from_lost(
        state_dir: &Path,
        number: u32,
        place: Place,
        replica: Arc<Replica>,
        link_timeout: Duration,
    ) -> Result<Arc<Leg>> {
        let leg = Leg::new(state_dir, number, place, link_timeout)?;
        match Receiving::start(replica) {
            Ok(r) => *leg.receiving.lock() = Some(r),
            Err(e) => *leg.why.lock() = Some(e.to_string()),
        }
        Ok(leg)
    }

    /// Its directories.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// For `kagami status`.
    pub fn status(&self) -> LegStatus {
        let s = self.pair.state();
        let state = match s {
            State::Pair => "synchronised",
            State::Copy | State::CopyResync => "copying",
            _ => "faulty",
        };
        let reason = self.why.lock().clone().or_else(|| self.pair.status("out", Default::default()).reason);
        LegStatus { leg: self.number, state: state.into(), reason: if s == State::Pair { None } else { reason } }
    }

    /// True when it has everything that was answered.
    pub fn is_good(&self) -> bool {
        self.pair.state() == State::Pair && self.receiving.lock().is_some()
    }

    /// Takes its replica to be the one in use: everything received is applied first.
    pub fn take(&self) -> Result<Arc<Replica>> {
        let r =
            self.receiving.lock().take().ok_or_else(|| Error::failed(format!("leg {} is not open", self.number)))?;
        match r.finish() {
            Ok(replica) => Ok(replica),
            Err((e, r)) => {
                *self.receiving.lock() = Some(r);
                Err(e)
            }
        }
    }

    /// Ends its link and its threads.
    pub fn close(&self) {
        if let Some(c) = self.link.lock().take() {
            c.close();
        }
        if let Some(r) = self.receiving.lock().take()
            && let Err(e) = r.shutdown()
        {
            log::warn!("group {} leg {}: {e}", self.group, self.number);
        }
    }

    fn receiver(&self) -> Result<Arc<Receiver>> {
        let mut g = self.receiving.lock();
        if g.is_none() {
            let opened = Replica::create(&self.place)
                .and_then(|()| Replica::open(&self.place))
                .and_then(|r| Receiving::start(Arc::new(r)));
            match opened {
                Ok(r) => {
                    *self.why.lock() = None;
                    *g = Some(r);
                }
                Err(e) => {
                    *self.why.lock() = Some(e.to_string());
                    return Err(e);
                }
            }
        }
        g.as_ref().map(|r| r.receiver.clone()).ok_or_else(|| Error::failed("leg not open"))
    }
}

impl Incoming for Leg {
    fn site(&self) -> &str {
        "this site"
    }
    fn group(&self) -> &str {
        &self.group
    }
    fn admit(&self, hello: &Hello, _theirs: &Chain, closer: &Closer) -> Admission {
        match self.receiver() {
            Ok(r) => {
                let id = r.replica.group_id();
                if id != 0 && id != hello.group_id {
                    return Admission::refuse(
                        crate::format::msg::RejectCode::OtherGroup,
                        "this leg belongs to another group of the same name",
                    );
                }
                *self.link.lock() = Some(closer.clone());
                Admission::Secondary(r)
            }
            Err(e) => Admission::refuse(crate::format::msg::RejectCode::Fault, e.to_string()),
        }
    }
    fn set_primary_head(&self, _head: Seq) {}
}

/// Dials legs instead of sites.
pub struct LegCtx(pub Arc<Leg>);

impl SenderCtx for LegCtx {
    fn dial(&self, _site: &str) -> Result<Link> {
        let leg = self.0.clone();
        leg.receiver()?;
        let (a, b) = Link::pair(&format!("leg {}", leg.number))?;
        std::thread::Builder::new().name(format!("leg-{}", leg.number)).spawn(move || {
            let served = serve::greet(b, leg.link_timeout).and_then(|(hello, r, w, closer)| {
                let timeout = leg.link_timeout;
                let pair = leg.pair_shadow()?;
                serve::serve(leg.clone(), pair, hello, r, w, closer, timeout)
            });
            if let Err(e) = served {
                log::debug!("leg {}: {e}", leg.number);
            }
        })?;
        Ok(a)
    }
    fn held(&self, _site: &str) -> Option<String> {
        None
    }
    fn newest(&self, _: &str, _: &Pair, _: u64, _: &[Epoch], _: Seq) -> Result<bool> {
        Ok(true)
    }
}

impl Leg {
    /// The receiving end's own view of the pair; both ends are in this process, and only the sending end's is persisted.
    fn pair_shadow(&self) -> Result<Arc<Pair>> {
        Ok(Arc::new(Pair::shadow(&self.pair)))
    }
}
