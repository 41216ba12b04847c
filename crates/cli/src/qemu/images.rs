//! `kohakuriver qemu image list --node`

use jiff::Timestamp;
use kohakuriver_api::VmImage;
use kohakuriver_model::{Memory, NodeName};

use crate::context::Context;
use crate::failure::Failure;
use crate::node::with_list_hint;
use crate::ui::{Fit, Grid, Tone, ago};

pub async fn run(context: &Context, node: &NodeName) -> Result<(), Failure> {
    let answer = context.api.vm_images(node.as_str()).await.map_err(with_list_hint)?;
    if context.out.json {
        context.out.json(&answer);
        return Ok(());
    }
    if answer.images.is_empty() {
        context.out.note(format!("node {node} sees no base image in {}", answer.images_dir));
        context.out.hint("`kohakuriver qemu image create --name debian-12` makes one");
        return Ok(());
    }
    let mut grid = Grid::new(&[
        ("NAME", Fit::Whole),
        ("VIRTUAL SIZE", Fit::Whole),
        ("ACTUAL SIZE", Fit::Whole),
        ("MODIFIED", Fit::Whole),
    ]);
    let now = Timestamp::now();
    for image in &answer.images {
        grid.row(row(image, now));
    }
    grid.print(context.out);
    Ok(())
}

fn row(image: &VmImage, now: Timestamp) -> Vec<(Tone, String)> {
    let size = |bytes| Memory::from_bytes(bytes).to_string();
    // A float's cast saturates, and what is no time is not shown.
    let modified = Timestamp::from_second(image.modified_at as i64);
    let modified = modified.map(|time| ago(&time.to_string(), now)).unwrap_or_default();
    let cells =
        [image.name.clone(), size(image.virtual_size_bytes), size(image.size_bytes), modified];
    cells.map(|text| (Tone::Plain, text)).into()
}
