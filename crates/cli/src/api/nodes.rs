//! The routes of nodes.

use kohakuriver_api::{
    JoinToken, JoinTokenRequest, LabelChanges, Node, NodeHealth, VmImages, VmInstanceDeleted,
    VmInstances,
};
use reqwest::Method;

use super::{Api, Call};
use crate::error::CommandError;

impl Api {
    pub async fn nodes(&self) -> Result<Vec<Node>, CommandError> {
        self.get("/api/nodes").await
    }

    pub async fn node(&self, name: &str) -> Result<Node, CommandError> {
        self.get(&format!("/api/nodes/{name}")).await
    }

    pub async fn node_health(&self, name: &str) -> Result<NodeHealth, CommandError> {
        self.get(&format!("/api/nodes/{name}/health")).await
    }

    pub async fn drain_node(&self, name: &str) -> Result<Node, CommandError> {
        self.post(&format!("/api/nodes/{name}/drain")).await
    }

    pub async fn undrain_node(&self, name: &str) -> Result<Node, CommandError> {
        self.post(&format!("/api/nodes/{name}/undrain")).await
    }

    pub async fn label_node(
        &self,
        name: &str,
        changes: &LabelChanges,
    ) -> Result<Node, CommandError> {
        self.send(Call::with_body(Method::PATCH, &format!("/api/nodes/{name}/labels"), changes))
            .await
    }

    pub async fn remove_node(
        &self,
        name: &str,
        force: bool,
    ) -> Result<serde_json::Value, CommandError> {
        self.delete(&format!("/api/nodes/{name}"), force).await
    }

    /// Lists the base images of a node.
    pub async fn vm_images(&self, node: &str) -> Result<VmImages, CommandError> {
        self.get(&format!("/api/vm/images/{node}")).await
    }

    /// Lists the files of virtual machines on all nodes.
    pub async fn vm_instances(&self) -> Result<VmInstances, CommandError> {
        self.get("/api/vps/vm-instances").await
    }

    /// Deletes a virtual machine's files. `node` is required where no VPS has this id. Removing
    /// large files takes long.
    pub async fn delete_vm_instance(
        &self,
        id: &str,
        node: Option<&str>,
        force: bool,
    ) -> Result<VmInstanceDeleted, CommandError> {
        let path = format!("/api/vps/vm-instances/{id}");
        let mut query = vec![("force", force.to_string())];
        query.extend(node.map(|node| ("hostname", node.to_owned())));
        self.send(Call { query: &query, limit: None, ..Call::new(Method::DELETE, &path) }).await
    }

    pub async fn join_token(&self, body: &JoinTokenRequest) -> Result<JoinToken, CommandError> {
        self.send(Call::with_body(Method::POST, "/api/nodes/tokens", body)).await
    }
}
