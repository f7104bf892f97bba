//! The links of a node: listening, dialling, who is who, and the switches that hold links back.

use super::ballot;
use super::config::{self, Config, PeerConfig};
use super::door::{Door, Stranger};
use super::local::LocalGroup;
use super::look::{self, Seen};
use super::pairs::Pair;
use super::receipt;
use super::sender::SenderCtx;
use super::serve;
use crate::base::sync::Mutex;
use crate::base::{At, Error, Kind, Result, Seq, time};
use crate::format::frame::FrameKind;
use crate::format::msg::{Hello, Msg, RejectCode, Wish};
use crate::net::{self, Addr, Closer, Identity, Invites, Link, Listener, PeerEntry, PeerKey, PeerStore, Purpose};
use crate::store::replica::Replica;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// How long a dial may take.
const DIAL: Duration = Duration::from_secs(3);

/// All links of a node.
pub struct Links {
    site: String,
    peers: Vec<PeerConfig>,
    listen: Vec<String>,
    state_dir: PathBuf,
    identity: Arc<Identity>,
    link_timeout: Duration,
    cut: AtomicBool,
    paused: Mutex<HashSet<String>>,
    open: Mutex<HashMap<u64, (String, Closer)>>,
    next: AtomicU64,
    door: Arc<Door>,
    listeners: Mutex<Vec<Arc<Listener>>>,
}

impl Links {
    /// For a node.
    pub fn new(c: &Config, identity: Arc<Identity>) -> Links {
        Links {
            site: c.node.site.clone(),
            peers: c.peers.clone(),
            listen: c.node.listen.clone(),
            state_dir: c.node.state_dir.clone(),
            identity,
            link_timeout: c.limits.link_timeout,
            cut: AtomicBool::new(false),
            paused: Mutex::new(HashSet::new()),
            open: Mutex::new(HashMap::new()),
            next: AtomicU64::new(1),
            door: Arc::new(Door::default()),
            listeners: Mutex::new(Vec::new()),
        }
    }

    /// Starts to listen; peers that greet are served for these groups.
    pub fn listen(self: &Arc<Self>, groups: &[Arc<LocalGroup>]) -> Result<()> {
        let groups: Arc<Vec<Arc<LocalGroup>>> = Arc::new(groups.to_vec());
        for a in &self.listen {
            let addr: Addr = a.parse()?;
            if let Addr::Unix(p) = &addr
                && let Some(dir) = p.parent()
            {
                std::fs::create_dir_all(dir).at(dir.display())?;
            }
            let listener = Arc::new(Listener::bind(&addr, &self.identity)?);
            log::info!("listening on {a}");
            self.listeners.lock().push(listener.clone());
            let (me, groups) = (self.clone(), groups.clone());
            std::thread::Builder::new().name("listen".into()).spawn(move || me.accept_loop(&listener, &groups))?;
        }
        Ok(())
    }

    fn accept_loop(self: Arc<Self>, listener: &Listener, groups: &Arc<Vec<Arc<LocalGroup>>>) {
        loop {
            let incoming = match listener.accept() {
                Ok(i) => i,
                Err(e) if e.kind == Kind::Link => return,
                Err(e) => {
                    log::warn!("accepting a link: {e}");
                    std::thread::sleep(Duration::from_millis(100));
                    continue;
                }
            };
            if self.cut.load(Ordering::SeqCst) {
                continue;
            }
            let Some(stranger) = self.door.enter(incoming.closer()) else {
                // Those that were pushed out are about to end.
                std::thread::yield_now();
                continue;
            };
            let (me, groups) = (self.clone(), groups.clone());
            let t = std::thread::Builder::new().name("serve".into()).spawn(move || {
                match incoming.handshake().and_then(|l| me.serve(l, &groups, stranger)) {
                    Ok(()) => {}
                    Err(e) => log::info!("an incoming link ended: {e}"),
                }
            });
            if let Err(e) = t {
                log::warn!("no thread for an incoming link: {e}");
            }
        }
    }

    fn serve(&self, link: Link, groups: &[Arc<LocalGroup>], stranger: Stranger) -> Result<()> {
        if link.purpose() == Purpose::Enrol {
            return self.enrol(link);
        }
        let peer = link.peer();
        let (hello, r, mut w, closer) = serve::greet(link, Duration::from_secs(5))?;
        let known = match &peer.key {
            // Over a Unix socket the kernel vouches for the user; the name is the peer's own word.
            None => self.peers.iter().any(|p| p.site == hello.site),
            Some(k) => self.key_of(&hello.site)?.as_ref() == Some(k),
        };
        if !known {
            let text = format!(
                "site {} does not know site {:?} with this key: exchange keys with `kagami peer invite` and `peer accept`",
                self.site, hello.site
            );
            serve::reject(&mut w, RejectCode::UnknownPeer, text.clone(), vec![], Seq(0));
            return Err(Error::refused(format!("refused {}: {text}", peer.addr)));
        }
        drop(stranger);
        let group = groups.iter().find(|g| g.cfg.name == hello.group);
        let pair = group.and_then(|g| g.pairs.iter().find(|p| p.name == hello.pair && p.peer == hello.site));
        if let Some(p) = pair {
            p.hear();
        }
        if self.paused.lock().contains(&hello.site) {
            serve::reject(
                &mut w,
                RejectCode::Paused,
                format!("site {} is paused at site {}", hello.site, self.site),
                vec![],
                Seq(0),
            );
            return Ok(());
        }
        let (Some(group), Some(pair)) = (group, pair) else {
            let text = format!(
                "site {} has no pair {:?} of group {:?} with site {:?} in its site file",
                self.site, hello.pair, hello.group, hello.site
            );
            serve::reject(&mut w, RejectCode::UnknownPair, text.clone(), vec![], Seq(0));
            return Err(Error::refused(text));
        };
        let id = self.note(&hello.site, closer.clone());
        if hello.wish == Wish::Vote {
            let r = ballot::serve(group.ballot(), &hello, r, w);
            self.open.lock().remove(&id);
            return r;
        }
        let r = serve::serve(Arc::new(group.clone()), pair.clone(), hello, r, w, closer.clone(), self.link_timeout);
        group.link_ended(&closer);
        self.open.lock().remove(&id);
        r
    }

    fn enrol(&self, link: Link) -> Result<()> {
        let invites = Invites::at(&config::invites_file(&self.state_dir));
        let file = config::peers_file(&self.state_dir);
        let done = net::enrol_serve(link, &self.identity, &self.site, &invites, time::now().sec, |e| {
            PeerStore::update(&file, |s| s.put(&e.site, PeerEntry { key: e.key, addr: e.addr.clone() }))
        })?;
        log::info!("site {} is known now", done.site);
        Ok(())
    }

    fn note(&self, site: &str, closer: Closer) -> u64 {
        let id = self.next.fetch_add(1, Ordering::SeqCst);
        self.open.lock().insert(id, (site.to_owned(), closer));
        id
    }

    fn key_of(&self, site: &str) -> Result<Option<PeerKey>> {
        if let Some(k) = self.peers.iter().find(|p| p.site == site).and_then(|p| p.key.as_ref()) {
            return k.parse().map(Some);
        }
        let file = config::peers_file(&self.state_dir);
        Ok(PeerStore::load(&file)?.get(site).map(|e| e.key))
    }

    /// Drops all links of the node and holds them back, or lets them come again (test bed, `lab cut` and `lab join`).
    pub fn set_cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::SeqCst);
        if cut {
            self.drop_links(|_| true);
        }
    }

    /// True while cut off.
    pub fn is_cut(&self) -> bool {
        self.cut.load(Ordering::SeqCst)
    }

    /// Holds back the links to one site, or lets them come again.
    pub fn set_paused(&self, site: &str, paused: bool) -> Result<()> {
        if !self.peers.iter().any(|p| p.site == site) {
            return Err(Error::config(format!("no site {site:?} among the peers of {}", self.site)));
        }
        if paused {
            self.paused.lock().insert(site.to_owned());
            self.drop_links(|s| s == site);
        } else {
            self.paused.lock().remove(site);
        }
        Ok(())
    }

    fn drop_links(&self, which: impl Fn(&str) -> bool) {
        self.open.lock().retain(|_, (s, c)| {
            if which(s) {
                c.close();
            }
            !which(s)
        });
    }

    /// Ends listening and all links.
    pub fn close(&self) {
        for l in self.listeners.lock().drain(..) {
            l.close();
        }
        self.drop_links(|_| true);
    }
}

impl SenderCtx for Links {
    fn dial(&self, site: &str) -> Result<Link> {
        if let Some(why) = self.held(site) {
            return Err(Error::link(why));
        }
        let peer = self.peers.iter().find(|p| p.site == site);
        let addr = match peer.and_then(|p| p.addr.clone()) {
            Some(a) => a.parse()?,
            None => {
                let store = PeerStore::load(&config::peers_file(&self.state_dir))?;
                store.get(site).and_then(|e| e.addr.clone()).ok_or_else(|| {
                    Error::config(format!(
                        "no address of site {site}: write addr in its [[peer]] table, or `kagami peer accept` its token"
                    ))
                })?
            }
        };
        let key = match addr {
            Addr::Unix(_) => None,
            Addr::Tcp(_) => Some(self.key_of(site)?.ok_or_else(|| {
                Error::refused(format!(
                    "the key of site {site} is not known: exchange keys with `kagami peer invite` and `peer accept`"
                ))
            })?),
        };
        let link =
            net::dial(&addr, &self.identity, key.as_ref(), DIAL).at(format!("reaching site {site} at {addr}"))?;
        self.note(site, link.closer());
        Ok(link)
    }

    fn held(&self, site: &str) -> Option<String> {
        if self.is_cut() {
            return Some("this node's links are cut (`kagami lab join` ends that)".into());
        }
        self.paused
            .lock()
            .contains(site)
            .then(|| format!("site {site} is paused (`kagami peer resume {site}` ends that)"))
    }

    fn ask(&self, pair: &Pair, replica: &Replica, wish: Wish) -> Result<Msg> {
        let (mut r, mut w) = self.dial(&pair.peer)?.split();
        let hello = receipt::hello(&self.site, pair, replica, wish)?;
        w.send(&Msg::Hello(hello).frame()?)?;
        let mut buf = Vec::new();
        loop {
            let h = r.recv_within(&mut buf, Duration::from_secs(5))?;
            if h.kind != FrameKind::Msg {
                return Err(Error::corrupt("the peer answered with something else than a welcome"));
            }
            match Msg::parse(&buf, &h)? {
                // It is still at it.
                Msg::Ping { .. } => {}
                m => return Ok(m),
            }
        }
    }

    fn look(&self, pair: &Pair, replica: &Replica, received: Seq) -> Result<Seen> {
        let hello = Hello { head: received, ..receipt::hello(&self.site, pair, replica, Wish::Look)? };
        look::look(self.dial(&pair.peer)?, hello)
    }
}
