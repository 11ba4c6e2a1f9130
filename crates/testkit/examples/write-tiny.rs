//! Writes every tiny model into a folder of its own under the folder given: `write-tiny FOLDER`.

use bitmill_testkit::{Tiny, Variant};

fn main() -> std::io::Result<()> {
    let Some(target) = std::env::args_os().nth(1) else {
        return Err(std::io::Error::other("usage: write-tiny FOLDER"));
    };
    for variant in Variant::ALL {
        let folder = std::path::Path::new(&target).join(variant.name());
        std::fs::create_dir_all(&folder)?;
        Tiny::new(variant).write_to(&folder);
    }
    Ok(())
}
