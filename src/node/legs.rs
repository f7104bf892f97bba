//! Legs of a mirror group at one site: besides the leg in use, each further leg is a replica that receives, in this
//! process, over the same protocol as a remote one: a leg is added, lost and brought back like a secondary (MS-8, MS-21).

use super::events::Events;
use super::heard::Heard;
use super::incoming::{Admission, Incoming};
use super::look::Seen;
use super::pairs::{Ends, Pair};
use super::receiving::Receiving;
use super::sender::SenderCtx;
use super::serve;
use super::status::LegStatus;
use crate::base::sync::Mutex;
use crate::base::{Error, Result, Seq};
use crate::format::msg::{Hello, Msg, Wish};
use crate::net::{Closer, Link};
use crate::pair::chain::Chain;
use crate::pair::state::{Mode, State};
use crate::store::receive::{Receiver, is_drive};
use crate::store::replica::{Place, Replica};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
    /// Its drive failed: it is compared as a whole when it is back.
    doubt: Mutex<bool>,
    /// It was the one in use, so it exists: an empty drive in its place is not filled (G10).
    known: AtomicBool,
}

impl Leg {
    /// The leg at a place; opened when the first link needs it, and again after it was lost.
    pub fn new(
        (state_dir, events): (&Path, &Arc<Events>),
        number: u32,
        place: Place,
        ends: Vec<Ends>,
        link_timeout: Duration,
    ) -> Result<Arc<Leg>> {
        let name = format!("leg{number}");
        let pair = Arc::new(Pair::load((state_dir, events), &place.group, &name, Mode::Sync, &name, ends)?);
        Ok(Arc::new(Leg {
            number,
            pair,
            group: place.group.clone(),
            place,
            link_timeout,
            receiving: Mutex::new(None),
            link: Mutex::new(None),
            why: Mutex::new(None),
            doubt: Mutex::new(false),
            known: AtomicBool::new(false),
        }))
    }

    /// Goes on with a replica that was in use and failed.
    pub fn adopt(&self, replica: Arc<Replica>, error: &Error) {
        self.known.store(true, Ordering::SeqCst);
        let lost = is_drive(error) || replica.order().live.kept().is_err();
        *self.doubt.lock() = lost;
        if lost {
            *self.why.lock() = Some(error.to_string());
            return;
        }
        match Receiving::start(replica) {
            Ok(r) => *self.receiving.lock() = Some(r),
            Err(e) => *self.why.lock() = Some(e.to_string()),
        }
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
        if let Some(e) = g.as_ref().and_then(|r| r.receiver.fault()) {
            // What its drive had not written when it failed may be missing when it is back.
            *self.why.lock() = Some(e.to_string());
            *self.doubt.lock() |= is_drive(&e);
            if let Some(Err(e)) = g.take().map(Receiving::shutdown) {
                log::warn!("group {} leg {}: {e}", self.group, self.number);
            }
        }
        if g.is_none() {
            // Once copied to it is there: an empty drive in its place is not filled unless somebody says so (G10).
            let new = !self.known.load(Ordering::SeqCst)
                && matches!(self.pair.state(), State::Smpl | State::Copy | State::PsueCopy(_) | State::PsusCopy);
            let made = if new { Replica::create(&self.place) } else { Ok(()) };
            let opened = made.and_then(|()| Replica::open(&self.place)).and_then(|r| {
                let mut doubt = self.doubt.lock();
                if *doubt {
                    r.doubt()?;
                    *doubt = false;
                }
                Ok(r)
            });
            let opened = opened.and_then(|r| Receiving::start(Arc::new(r)));
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
    fn ordered(&self, _hello: &Hello, _theirs: &Chain) -> Result<()> {
        Err(Error::refused("a leg has no role of its own"))
    }
    fn receiver(&self) -> Option<Arc<Receiver>> {
        None
    }
    fn standing(&self) -> Result<Vec<u8>> {
        Err(Error::refused("a leg is at this site"))
    }
    fn heard(&self, _word: Heard) {}
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
    fn ask(&self, _: &Pair, _: &Replica, _: Wish) -> Result<Msg> {
        Err(Error::refused("a leg has no role of its own"))
    }
    fn look(&self, _: &Pair, _: &Replica, _: Seq) -> Result<Seen> {
        Err(Error::refused("a leg is at this site"))
    }
}

impl Leg {
    /// The receiving end's own view of the pair; both ends are in this process, and only the sending end's is persisted.
    fn pair_shadow(&self) -> Result<Arc<Pair>> {
        Ok(Arc::new(Pair::shadow(&self.pair)))
    }
}
