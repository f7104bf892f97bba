//! CD-4: the config definition is written at the first mount and travels in the copy, first copy and resync alike.

use crate::support;

use support::lab::Lab;

fn head(lab: &Lab, site: &str) -> Option<Vec<u8>> {
    std::fs::read(lab.site_dir(site).join("region/.kagami/head")).ok()
}

#[test]
fn cd4_the_config_definition_travels_in_the_copy() {
    let lab = Lab::up(&[]);
    lab.wait(60);
    let here = head(&lab, "primary").expect("written at the first mount");
    let mount = lab.mnt();
    let path = std::os::unix::ffi::OsStrExt::as_bytes(mount.as_os_str());
    assert!(here.windows(path.len()).any(|w| w == path), "it names the mount directory");
    for site in ["sync", "async"] {
        assert_eq!(head(&lab, site).as_deref(), Some(here.as_slice()), "at site {site}");
    }
    // Lost at a secondary, it comes with the next resync.
    lab.kill("sync");
    std::fs::remove_file(lab.site_dir("sync").join("region/.kagami/head")).unwrap();
    lab.kill("primary");
    lab.start("primary");
    lab.start("sync");
    std::fs::write(lab.mnt().join("x"), b"x").unwrap();
    lab.wait(60);
    assert_eq!(head(&lab, "sync").as_deref(), Some(here.as_slice()));
    lab.down();
}
