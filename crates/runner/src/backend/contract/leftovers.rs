//! Leftovers of snapshots on a real engine are removed at rest.

use super::*;

fn docker(args: &[&str]) -> String {
    let output = Command::new("docker").args(args).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Made, not started.
async fn made(node: &Node, order: &Order) {
    agent_files::write_instance_files(&node.layout, order).unwrap();
    let image = node.backend.prepare(order, &|_, _| {}).await.unwrap();
    node.backend.create(order, &image).await.unwrap();
}

#[tokio::test]
async fn deleted_snapshot_goes_with_the_last_vps_made_from_it() {
    let node = Node::new();
    node.install();
    let (first, mut second) = (fresh_order(IMAGE), fresh_order(IMAGE));
    let (id, copy) = (first.task_id, second.task_id);
    made(&node, &first).await;
    let saved = node.backend.create_snapshot(id, &SnapshotSpec::default(), 0).await.unwrap();
    let name = format!("kohakuriver-snapshot/vps-{id}:{}", saved.tag);
    let image = docker(&["image", "inspect", "--format", "{{.Id}}", &name]);
    assert!(image.starts_with("sha256:"), "{image}");
    second.spec.snapshot = Some(SnapshotRef { task_id: id, tag: saved.tag });
    made(&node, &second).await;

    node.backend.remove(id).await.unwrap();
    node.backend.delete_all_snapshots(id).await.unwrap();
    node.backend.tidy(id).await.unwrap();
    let is_there = || docker(&["image", "inspect", "--format", "{{.Id}}", &image]) == image;
    assert!(is_there(), "the copy's disk is built on it");
    node.backend.remove(copy).await.unwrap();
    node.backend.tidy(copy).await.unwrap();
    assert!(!is_there(), "nothing is built on it any more");
}

#[tokio::test]
async fn helper_container_of_a_cut_off_snapshot_is_removed_at_rest() {
    let node = Node::new();
    node.install();
    let order = fresh_order(IMAGE);
    made(&node, &order).await;
    let helper = format!("kohakuriver-flatten-{}", order.task_id);
    docker(&["create", "--name", &helper, IMAGE, "none"]);
    let filter = format!("name={helper}");
    let is_there = || !docker(&["ps", "--all", "--quiet", "--filter", &filter]).is_empty();
    assert!(is_there());
    // As for each instance that a runner takes up at its start.
    node.backend.tidy(order.task_id).await.unwrap();
    assert!(!is_there());
}
