//! Virtual machines through the API.

use anyhow::Result;
use kohakuriver_model::{DockerState, ImageSource, InstanceId, Inventory, Observed, VmState};
use kohakuriver_testkit::{Answer, FakeRunner, ORPHAN, Reaction, TestHost, vm_inventory};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

fn id(text: &str) -> InstanceId {
    text.parse().unwrap()
}

async fn with_node(reaction: Reaction) -> Result<(TestHost, FakeRunner)> {
    let host = TestHost::start().await?;
    let runner = FakeRunner::join_as(&host, "n1", reaction, vm_inventory()).await?;
    Ok((host, runner))
}

async fn create(host: &TestHost, more: Value) -> Result<Answer> {
    let mut body = json!({"vps_backend": "qemu", "name": "vm"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    host.post("/api/vps/create", body).await
}

#[tokio::test]
async fn vm_is_created_and_has_compatible_fields() -> Result<()> {
    let (host, runner) = with_node(Reaction::Obey).await?;
    let wish = json!({"vm_image": "noble", "vm_disk_size": "30", "memory_mb": 2048,
        "required_cores": 2, "env_vars": {"A": "b"}, "ssh_key_mode": "none"});
    let created = create(&host, wish).await?;
    assert_eq!(created.status, 200, "{created:?}");
    assert_eq!((created.text("vps_backend"), created.text("vm_ip")), ("qemu", "10.77.0.2"));
    assert_eq!(created.body["runner_response"]["vm_ip"], "10.77.0.2");
    let spec = runner.order(id(created.text("task_id"))).unwrap().spec;
    assert_eq!(spec.image, ImageSource::VmImage { name: "noble".parse()? });
    assert_eq!((spec.vm_disk_bytes, spec.memory_bytes), (Some(30 << 30), Some(2 << 30)));
    let task = host.get("/api/status/vm").await?;
    assert_eq!((task.text("vps_backend"), task.text("vm_image")), ("qemu", "noble"));
    assert_eq!((task.text("vm_disk_size"), task.text("vm_ip")), ("30G", "10.77.0.2"));
    for absent in ["docker_image_name", "container_name", "pids_limit"] {
        assert_eq!(task.body[absent], Value::Null, "{absent}");
    }
    let node = host.get("/api/nodes/n1").await?.body;
    assert_eq!(node["memory_allocated_bytes"], json!(2_u64 << 30));
    assert_eq!(node["cores_in_use"], 2);
    assert_eq!(
        (&node["vm_capable"], &node["vm_accel"], &node["vm_version"], &node["vm_warning"]),
        (&json!(true), &json!("tcg"), &json!("10.0"), &json!("machines are emulated"))
    );
    let events = host.get("/api/vps/vm/events").await?.body.to_string();
    assert!(events.contains("at 10.77.0.2"), "{events}");
    Ok(())
}

#[tokio::test]
async fn fields_of_other_backend_are_refused() -> Result<()> {
    let (host, _runner) = with_node(Reaction::Obey).await?;
    let machine = |more: Value| {
        let mut body = json!({"vps_backend": "qemu"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let cases = [
        (json!({"vm_image": "debian-12"}), "vm_image applies to virtual machines"),
        (
            json!({"vps_backend": "docker", "vm_disk_size": "20G"}),
            "vm_disk_size applies to virtual",
        ),
        (json!({"memory_mb": 512}), "memory_mb applies to virtual machines"),
        (machine(json!({"registry_image": "debian:12"})), "registry_image applies to containers"),
        (machine(json!({"container_name": "base"})), "container_name applies to containers"),
        (machine(json!({"pids_limit": 99})), "pids_limit applies to containers"),
        (machine(json!({"on_oom": "keep"})), "on_oom applies to containers"),
        (machine(json!({"vm_disk_size": "10M"})), "from 1G to 64T"),
        (machine(json!({"vm_disk_size": "much"})), "'much' is not a size"),
        (machine(json!({"vm_image": "../../etc"})), "not a VM image name"),
        (machine(json!({"memory_mb": 16})), "at least 128M"),
        (json!({"vps_backend": "podman"}), "no backend 'podman'"),
    ];
    for (body, why) in cases {
        let answer = host.post("/api/vps/create", body.clone()).await?;
        assert_eq!((answer.status, answer.text("code")), (422, "invalid"), "{body} {answer:?}");
        assert!(answer.text("detail").contains(why), "{body} {answer:?}");
        assert!(!answer.text("hint").is_empty(), "{body} {answer:?}");
    }
    // Existing clients send empty texts and zeros for absent values.
    let empty = json!({"vm_image": "", "vm_disk_size": "", "memory_mb": 0, "vps_backend": ""});
    assert_eq!(host.post("/api/vps/create", empty).await?.text("vps_backend"), "docker");
    assert_eq!(host.get("/api/vps").await?.body.as_array().unwrap().len(), 1);
    Ok(())
}

#[tokio::test]
async fn each_backend_is_available_where_its_engine_works() -> Result<()> {
    let host = TestHost::start().await?;
    let gone = DockerState::Unavailable { reason: "no socket".to_owned() };
    let only_vms = Inventory { docker: gone, ..vm_inventory() };
    let no_kvm = VmState::Unavailable { reason: "QEMU is not installed".to_owned() };
    let only_docker = Inventory { vm: no_kvm, ..vm_inventory() };
    let _a = FakeRunner::join_as(&host, "a", Reaction::Obey, only_vms).await?;
    let _b = FakeRunner::join_as(&host, "b", Reaction::Obey, only_docker).await?;
    let machine = create(&host, json!({})).await?;
    assert_eq!(machine.body["assigned_node"]["hostname"], "a", "{machine:?}");
    let container = host.post("/api/vps/create", json!({})).await?;
    assert_eq!(container.body["assigned_node"]["hostname"], "b", "{container:?}");
    let wrong = create(&host, json!({"target_hostname": "b", "name": "x"})).await?;
    assert_eq!((wrong.status, wrong.text("code")), (503, "node_unavailable"));
    assert!(wrong.text("detail").contains("machines: QEMU is not installed"), "{wrong:?}");
    let wrong = host.post("/api/vps/create", json!({"target_hostname": "a"})).await?;
    assert!(wrong.text("detail").contains("Docker engine: no socket"), "{wrong:?}");
    // It can still be stopped and started where Docker is unavailable.
    assert_eq!(host.post("/api/vps/stop/vm", json!({})).await?.status, 202);
    host.wait_for("vm", "stopped").await?;
    assert_eq!(host.post("/api/vps/restart/vm", json!({})).await?.status, 202);
    host.wait_for("vm", "running").await?;
    let node = host.get("/api/nodes/b").await?;
    assert_eq!(
        (node.text("vm_error"), &node.body["vm_capable"]),
        ("QEMU is not installed", &json!(false))
    );
    Ok(())
}

#[tokio::test]
async fn vm_pause_is_refused_with_alternatives() -> Result<()> {
    let (host, runner) = with_node(Reaction::Obey).await?;
    let created = create(&host, json!({})).await?;
    for path in ["/api/vps/pause/vm", "/api/vps/resume/vm", "/api/command/vm/pause"] {
        let refused = host.post(path, json!({})).await?;
        assert_eq!((refused.status, refused.text("code")), (409, "no_pause"), "{path}");
        let hint = refused.text("hint");
        assert!(hint.contains("vps stop vm") && hint.contains("vps restart vm"), "{hint}");
    }
    assert_eq!(runner.order(id(created.text("task_id"))).unwrap().intent.generation, 1);
    let refused = host.delete("/api/vps/vm").await?;
    assert!(!refused.text("hint").contains("pause"), "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn vm_limits_change_and_container_fields_are_refused() -> Result<()> {
    let (host, runner) = with_node(Reaction::Obey).await?;
    let created = create(&host, json!({})).await?;
    let wish = json!({"required_cores": 3, "required_memory_bytes": 5_u64 << 30});
    assert_eq!(host.patch("/api/vps/vm", wish).await?.status, 202);
    let node = host.get("/api/nodes/n1").await?.body;
    assert_eq!(node["memory_allocated_bytes"], json!(5_u64 << 30));
    for (body, why) in [
        (json!({"pids_limit": 99}), "pids_limit"),
        (json!({"on_oom": "keep"}), "on_oom"),
        (json!({"required_memory_bytes": 0}), "memory of its own"),
    ] {
        let refused = host.patch("/api/vps/vm", body).await?;
        assert_eq!((refused.status, refused.text("code")), (422, "invalid"));
        assert!(refused.text("detail").contains(why), "{refused:?}");
    }
    let id = id(created.text("task_id"));
    for _ in 0..6000 {
        let spec = runner.order(id).unwrap().spec;
        if (spec.cores, spec.memory_bytes) == (3, Some(5 << 30)) {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the runner never heard of it");
}

#[tokio::test]
async fn copy_of_vm_is_a_vm_and_backends_do_not_mix() -> Result<()> {
    let (host, runner) = with_node(Reaction::Obey).await?;
    let created = create(&host, json!({"vm_image": "noble", "vm_disk_size": "40G"})).await?;
    assert_eq!(created.status, 200, "{created:?}");
    assert_eq!(host.post("/api/vps/create", json!({"name": "box"})).await?.status, 200);
    for name in ["vm", "box"] {
        assert_eq!(host.post(&format!("/api/vps/snapshots/{name}"), json!({})).await?.status, 200);
    }
    let copy = host.post("/api/vps/create", json!({"from_vps": "vm"})).await?;
    assert_eq!((copy.status, copy.text("vps_backend")), (200, "qemu"), "{copy:?}");
    let spec = runner.order(id(copy.text("task_id"))).unwrap().spec;
    assert_eq!(spec.image, ImageSource::VmImage { name: "noble".parse()? });
    assert_eq!(spec.vm_disk_bytes, Some(40 << 30));
    assert!(spec.snapshot.is_some());
    let copy = host.post("/api/vps/create", json!({"from_vps": "box"})).await?;
    assert_eq!(copy.text("vps_backend"), "docker", "{copy:?}");
    for (body, why) in [
        (json!({"from_vps": "vm", "vps_backend": "docker"}), "that is qemu, not docker"),
        (json!({"from_vps": "box", "vps_backend": "qemu"}), "that is docker, not qemu"),
        (json!({"from_vps": "box", "vm_disk_size": "30G"}), "vm_disk_size applies to virtual"),
        (json!({"from_vps": "vm", "vm_disk_size": "30G"}), "from 40G"),
        (json!({"from_vps": "vm", "vm_image": "noble"}), "takes no image"),
    ] {
        let refused = host.post("/api/vps/create", body.clone()).await?;
        assert_eq!((refused.status, refused.text("code")), (422, "invalid"), "{body} {refused:?}");
        assert!(refused.text("detail").contains(why), "{body} {refused:?}");
    }
    Ok(())
}

/// Requests a stream into an instance. Returns the response's status and the bytes behind its head.
async fn stream(host: &TestHost, task: &str, target: &str) -> Result<(u16, String)> {
    let mut socket = TcpStream::connect(host.host.api_address()).await?;
    let request = format!(
        "GET /api/vps/{task}/stream?target={target} HTTP/1.1\r\nhost: localhost\r\n\
         connection: upgrade\r\nupgrade: kohakuriver-stream\r\n\r\n"
    );
    socket.write_all(request.as_bytes()).await?;
    let mut reader = BufReader::new(socket);
    let mut line = String::new();
    reader.read_line(&mut line).await?;
    let status = line.split(' ').nth(1).unwrap_or_default().parse()?;
    let mut length = 0;
    loop {
        line.clear();
        reader.read_line(&mut line).await?;
        match line.trim().to_ascii_lowercase().strip_prefix("content-length: ") {
            Some(text) => length = text.parse()?,
            None if line.trim().is_empty() => break,
            None => {}
        }
    }
    if status == 101 {
        line.clear();
        reader.read_line(&mut line).await?;
        return Ok((status, line));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).await?;
    Ok((status, String::from_utf8(body)?))
}

#[tokio::test]
async fn booting_vm_has_only_a_console() -> Result<()> {
    let (host, runner) = with_node(Reaction::Ignore).await?;
    let created = host
        .post("/api/vps/create?wait=false", json!({"vps_backend": "qemu", "name": "vm"}))
        .await?;
    let container = host.post("/api/vps/create?wait=false", json!({"name": "box"})).await?;
    assert_eq!(container.status, 200, "{container:?}");
    let task = id(created.text("task_id"));
    let step = Observed::Provisioning { step: "booting".into(), percent: None };
    runner.report(task, 1, step).await?;
    let (status, greeting) = stream(&host, "vm", "attach").await?;
    assert_eq!((status, greeting), (101, format!("hello from {task}\n")));
    for target in ["exec", "session", "files", "ping"] {
        let (status, body) = stream(&host, "vm", target).await?;
        assert_eq!(status, 409, "{target}");
        assert!(body.contains("not_running") && body.contains("terminal attach vm"), "{body}");
    }
    let (status, body) = stream(&host, "box", "attach").await?;
    assert_eq!(status, 409, "{body}");
    assert!(!body.contains("terminal attach"), "{body}");
    let stopped = Observed::Stopped { exit_code: None, finished_at_ms: 9, oom: false };
    runner.report(task, 1, stopped).await?;
    let task = host.wait_for("vm", "failed").await?;
    assert!(task["error_message"].as_str().unwrap().contains("from inside"), "{task}");
    assert_eq!(stream(&host, "vm", "attach").await?.0, 409, "it has no console when it is down");
    Ok(())
}

#[tokio::test]
async fn removed_node_response_lists_leftovers_by_kind() -> Result<()> {
    let (host, _runner) = with_node(Reaction::Obey).await?;
    let machine = create(&host, json!({})).await?;
    let container = host.post("/api/vps/create", json!({"name": "box"})).await?;
    let removed = host.delete("/api/nodes/n1?force=true").await?.body;
    assert_eq!(removed["left_machines"], json!([machine.text("task_id")]));
    let name = format!("kohakuriver-vps-{}", container.text("task_id"));
    assert_eq!(removed["left_behind"], json!([name]));
    Ok(())
}

#[tokio::test]
async fn vm_images_are_listed_as_node_reports_them() -> Result<()> {
    let (host, runner) = with_node(Reaction::Obey).await?;
    let answer = host.get("/api/vm/images/n1").await?;
    assert_eq!(answer.text("images_dir"), "/shared/vm-images");
    assert_eq!(
        answer.body["images"][0],
        json!({"name": "debian-12", "filename": "debian-12/disk.qcow2",
            "size_bytes": 300 << 20, "virtual_size_bytes": 3_u64 << 30,
            "modified_at": 1_790_000_000.5})
    );
    let unknown = host.get("/api/vm/images/n9").await?;
    assert_eq!((unknown.status, unknown.text("code")), (404, "unknown_node"));
    runner.disconnect().await;
    for _ in 0..6000 {
        let away = host.get("/api/vm/images/n1").await?;
        if away.status == 503 {
            assert_eq!(away.text("code"), "node_away");
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the node never went away");
}

#[tokio::test]
async fn vm_files_are_listed_and_orphans_removed() -> Result<()> {
    let (host, _runner) = with_node(Reaction::Obey).await?;
    let created = create(&host, json!({})).await?;
    let container = host.post("/api/vps/create", json!({"name": "box"})).await?;
    assert_eq!(container.status, 200, "{container:?}");
    let list = host.get("/api/vps/vm-instances").await?.body;
    assert_eq!(
        list["summary"],
        json!({"total_instances": 2, "orphaned_count": 1, "total_disk_usage_bytes": 10 << 20})
    );
    let node = &list["nodes"][0];
    assert_eq!((&node["hostname"], &node["status"]), (&json!("n1"), &json!("online")));
    let [machine, orphan] = [&node["instances"][0], &node["instances"][1]];
    assert_eq!(machine["task_id"], created.text("task_id"));
    assert_eq!((&machine["db_status"], &machine["qemu_pid"]), (&json!("running"), &json!(42)));
    assert_eq!(machine["task_metadata"]["name"], "vm");
    assert_eq!(
        (&orphan["db_status"], &orphan["task_metadata"]),
        (&json!("orphaned"), &Value::Null)
    );

    let path = format!("/api/vps/vm-instances/{ORPHAN}");
    let unsaid = host.delete(&path).await?;
    assert_eq!((unsaid.status, unsaid.text("code")), (400, "which_node"));
    let removed = host.delete(&format!("{path}?hostname=n1")).await?;
    assert_eq!((removed.status, &removed.body["freed_bytes"]), (200, &json!(5 << 20)));
    let again = host.delete(&format!("{path}?hostname=n1")).await?;
    assert_eq!((again.status, again.text("code")), (409, "refused"), "{again:?}");

    let running = host.delete("/api/vps/vm-instances/vm").await?;
    assert_eq!((running.status, running.text("code")), (409, "wrong_state"), "{running:?}");
    let container = host.delete("/api/vps/vm-instances/box").await?;
    assert_eq!((container.status, container.text("code")), (409, "no_machine"));
    let removed = host.delete("/api/vps/vm-instances/vm?force=true").await?;
    assert_eq!((removed.status, &removed.body["freed_bytes"]), (200, &json!(5 << 20)));
    for _ in 0..6000 {
        if host.get("/api/status/vm").await?.status == 404 {
            return Ok(());
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the row stayed");
}

#[tokio::test]
async fn vm_gpu_takes_its_iommu_group_exclusively() -> Result<()> {
    let (host, runner) = with_node(Reaction::Obey).await?;
    let before = host.get("/api/nodes/n1").await?.body;
    let card = &before["vfio_gpus"][0];
    assert_eq!((&card["iommu_group"], &card["refusal"]), (&json!(12), &Value::Null));
    assert_eq!(card["iommu_group_peers"], json!(["00000000:01:00.0"]));
    let created = create(&host, json!({"required_gpus": [1]})).await?;
    assert_eq!(created.status, 200, "{created:?}");
    let spec = runner.order(id(created.text("task_id"))).unwrap().spec;
    let cards: Vec<u32> = spec.gpus.iter().map(|gpu| gpu.index).collect();
    assert_eq!(cards, [1, 0]);
    let refused = host.post("/api/vps/create", json!({"required_gpus": [0]})).await?;
    assert!(refused.text("detail").contains("GPU 0 of node 'n1' is taken by VPS 'vm'"));
    let after = host.get("/api/nodes/n1").await?.body;
    assert_eq!(
        (&after["vfio_gpus"][0]["taken"], &after["gpu_info"][0]["taken"]),
        (&json!(true), &json!(true))
    );
    Ok(())
}

#[tokio::test]
async fn gpu_unusable_by_vms_is_refused_with_reason() -> Result<()> {
    let host = TestHost::start().await?;
    let mut inventory = vm_inventory();
    for gpu in &mut inventory.gpus {
        gpu.vfio.refusal = Some("the IOMMU is off".to_owned());
    }
    let _runner = FakeRunner::join_as(&host, "n1", Reaction::Obey, inventory).await?;
    for wish in [json!({"required_gpus": [0]}), json!({"gpu_count": 1})] {
        let refused = create(&host, wish).await?;
        assert!(refused.text("detail").contains("the IOMMU is off"), "{refused:?}");
    }
    let container = host.post("/api/vps/create", json!({"required_gpus": [0]})).await?;
    assert_eq!(container.status, 200, "{container:?}");
    Ok(())
}
