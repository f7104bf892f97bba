//! The smallest possible use of the library: one region, mounted in the foreground, without peers.
//!
//!     cargo run --example mount_local -- REGION MOUNTPOINT

use kagami::base::VolId;
use kagami::fs::{MountOpts, mount};
use kagami::store::region::Region;
use kagami::volume::Volume;
use kagami::volume::order::LocalOrder;
use std::path::Path;
use std::sync::Arc;

fn run(region: &Path, at: &Path) -> kagami::base::Result<()> {
    Region::create(region, "local", "volume", VolId(0))?;
    let order = LocalOrder::new(Arc::new(Region::open(region, "local", "volume", VolId(0))?));
    let volume = Volume::new(Arc::new(order), VolId(0))?;
    let (ended, end) = std::sync::mpsc::channel();
    let on_end = Box::new(move |_| {
        let _ = ended.send(());
    });
    let label = "local/volume".into();
    let mounted = mount(volume, at, MountOpts { label, on_end: Some(on_end), ..MountOpts::default() })?;
    println!("mounted at {}; ends with `umount {}`", mounted.path().display(), at.display());
    let _ = end.recv();
    Ok(())
}

fn main() {
    env_logger::init();
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let [region, at] = args.as_slice() else {
        eprintln!("usage: mount_local REGION MOUNTPOINT");
        std::process::exit(2);
    };
    kagami::os::sys::raise_nofile(1 << 20);
    if let Err(e) = run(region.as_ref(), at.as_ref()) {
        eprintln!("mount_local: {e}");
        std::process::exit(e.exit_code());
    }
}
