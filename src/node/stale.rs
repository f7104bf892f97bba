//! A peer says that there is a newer primary (G3): it must show one.

use crate::base::{Epoch, Error, Seq};
use crate::pair::chain::{Chain, Winner};
use crate::store::replica::Replica;

/// True where the epochs that the peer tells of do not show the opposite: that this replica's history is the newer one.
pub fn is_shown(replica: &Replica, theirs: Vec<Epoch>, their_head: Seq) -> bool {
    let theirs = Chain::from_epochs(theirs);
    if theirs.head().is_none() || theirs.validate(their_head).is_err() {
        return false;
    }
    let m = replica.order();
    replica.chain(&m).winner(m.live.last_seq(), &theirs, their_head) != Some(Winner::Mine)
}

/// What is said of a peer that shows none.
pub fn unproven(peer: &str, text: &str) -> Error {
    Error::corrupt(format!("site {peer} says that there is a newer primary ({text}), and its epochs do not show one"))
}
