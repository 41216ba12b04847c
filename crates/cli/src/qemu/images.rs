//! `kohakuriver qemu image list --node`

use kohakuriver_api::VmImage;
use kohakuriver_model::{Memory, NodeName};

use crate::context::Context;
use crate::error::CommandError;
use crate::node::with_list_hint;
use crate::ui::{Fit, Grid, Tone, ago_ms};

pub async fn run(context: &Context, node: &NodeName) -> Result<(), CommandError> {
    let answer = context.api.vm_images(node.as_str()).await.map_err(with_list_hint)?;
    if context.out.json {
        context.out.json(&answer);
        return Ok(());
    }
    if answer.images.is_empty() {
        context.out.note(format!("node {node} has no base image in {}", answer.images_dir));
        context.out.hint("`kohakuriver qemu image create --name debian-12` creates one");
        return Ok(());
    }
    let mut grid = Grid::new(&[
        ("NAME", Fit::Whole),
        ("VIRTUAL SIZE", Fit::Whole),
        ("ACTUAL SIZE", Fit::Whole),
        ("MODIFIED", Fit::Cut),
    ]);
    for image in &answer.images {
        grid.row(row(image));
    }
    grid.print(context.out);
    Ok(())
}

fn row(image: &VmImage) -> Vec<(Tone, String)> {
    let size = |bytes| Memory::from_bytes(bytes).to_string();
    // The cast saturates, so that every number is a valid time.
    let modified = ago_ms((image.modified_at * 1000.0) as u64);
    let cells =
        [image.name.clone(), size(image.virtual_size_bytes), size(image.size_bytes), modified];
    cells.map(|text| (Tone::Plain, text)).into()
}
