//! LLB messages as the JSON that canonical keys hash: field names, order and omission of zero values are fixed by
//! what BuildKit's caches already hold. Every field of a message is named, so a new one cannot be forgotten.

use base64::Engine as _;
use kiln_llb::pb;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

fn zero_i64(v: &i64) -> bool {
    *v == 0
}
fn zero_i32(v: &i32) -> bool {
    *v == 0
}
fn zero_u32(v: &u32) -> bool {
    *v == 0
}
fn no(v: &bool) -> bool {
    !*v
}

#[derive(Serialize)]
pub struct Exec {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta: Option<Meta>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    #[serde(skip_serializing_if = "zero_i32")]
    pub network: i32,
    #[serde(skip_serializing_if = "zero_i32")]
    pub security: i32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secretenv: Vec<SecretEnv>,
    #[serde(rename = "cdiDevices", skip_serializing_if = "Vec::is_empty")]
    pub cdi_devices: Vec<Device>,
}

#[derive(Serialize)]
pub struct Meta {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cwd: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    #[serde(rename = "extraHosts", skip_serializing_if = "Vec::is_empty")]
    pub extra_hosts: Vec<Host>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hostname: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ulimit: Vec<Ulimit>,
    #[serde(rename = "cgroupParent", skip_serializing_if = "String::is_empty")]
    pub cgroup_parent: String,
    #[serde(rename = "removeMountStubsRecursive", skip_serializing_if = "no")]
    pub remove_mount_stubs_recursive: bool,
    #[serde(rename = "validExitCodes", skip_serializing_if = "Vec::is_empty")]
    pub valid_exit_codes: Vec<i32>,
}

#[derive(Serialize)]
pub struct Host {
    #[serde(rename = "Host", skip_serializing_if = "String::is_empty")]
    pub host: String,
}

#[derive(Serialize)]
pub struct Ulimit {
    #[serde(rename = "Name", skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(rename = "Soft", skip_serializing_if = "zero_i64")]
    pub soft: i64,
    #[serde(rename = "Hard", skip_serializing_if = "zero_i64")]
    pub hard: i64,
}

#[derive(Serialize)]
pub struct SecretEnv {
    #[serde(rename = "ID", skip_serializing_if = "String::is_empty")]
    pub id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "no")]
    pub optional: bool,
}

#[derive(Serialize)]
pub struct Device {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "no")]
    pub optional: bool,
}

#[derive(Serialize)]
pub struct Mount {
    #[serde(skip_serializing_if = "zero_i64")]
    pub input: i64,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub dest: String,
    #[serde(skip_serializing_if = "zero_i64")]
    pub output: i64,
    #[serde(skip_serializing_if = "no")]
    pub readonly: bool,
    #[serde(rename = "mountType", skip_serializing_if = "zero_i32")]
    pub mount_type: i32,
    #[serde(rename = "TmpfsOpt", skip_serializing_if = "Option::is_none")]
    pub tmpfs: Option<Tmpfs>,
    #[serde(rename = "cacheOpt", skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
    #[serde(rename = "secretOpt", skip_serializing_if = "Option::is_none")]
    pub secret: Option<Credential>,
    #[serde(rename = "SSHOpt", skip_serializing_if = "Option::is_none")]
    pub ssh: Option<Credential>,
    #[serde(rename = "resultID", skip_serializing_if = "String::is_empty")]
    pub result_id: String,
    #[serde(rename = "contentCache", skip_serializing_if = "zero_i32")]
    pub content_cache: i32,
}

#[derive(Serialize)]
pub struct Tmpfs {
    #[serde(skip_serializing_if = "zero_i64")]
    pub size: i64,
}

#[derive(Serialize)]
pub struct Cache {
    #[serde(rename = "ID", skip_serializing_if = "String::is_empty")]
    pub id: String,
    #[serde(skip_serializing_if = "zero_i32")]
    pub sharing: i32,
}

/// A secret's or an SSH agent's mount: the id and where it shows, never a value.
#[derive(Serialize)]
pub struct Credential {
    #[serde(rename = "ID", skip_serializing_if = "String::is_empty")]
    pub id: String,
    #[serde(skip_serializing_if = "zero_u32")]
    pub uid: u32,
    #[serde(skip_serializing_if = "zero_u32")]
    pub gid: u32,
    #[serde(skip_serializing_if = "zero_u32")]
    pub mode: u32,
    #[serde(skip_serializing_if = "no")]
    pub optional: bool,
}

/// `{"user":{"User":{"ByName":{…}}},"group":…}`: the wrapped form that a protobuf oneof takes in Go's JSON.
#[derive(Serialize)]
pub struct Owner {
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<OneUser>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<OneUser>,
}

#[derive(Serialize)]
struct OneUser {
    #[serde(rename = "User")]
    user: Option<UserChoice>,
}

enum UserChoice {
    Name { name: String, input: i64 },
    Id(u32),
}

impl Serialize for UserChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Named<'a> {
            #[serde(skip_serializing_if = "str::is_empty")]
            name: &'a str,
            #[serde(skip_serializing_if = "zero_i64")]
            input: i64,
        }
        let mut map = serializer.serialize_map(Some(1))?;
        match self {
            Self::Name { name, input } => map.serialize_entry("ByName", &Named { name, input: *input })?,
            Self::Id(id) => map.serialize_entry("ByID", id)?,
        }
        map.end()
    }
}

/// Returns the owner of a file action in canonical form.
pub fn owner(owner: Option<&pb::ChownOpt>) -> Option<Owner> {
    let pb::ChownOpt { user, group } = owner?;
    Some(Owner { user: user.as_ref().map(one_user), group: group.as_ref().map(one_user) })
}

fn one_user(user: &pb::UserOpt) -> OneUser {
    let user = user.user.as_ref().map(|choice| match choice {
        pb::user_opt::User::ByName(pb::NamedUserOpt { name, input }) => {
            UserChoice::Name { name: name.clone(), input: *input }
        }
        pb::user_opt::User::ById(id) => UserChoice::Id(*id),
    });
    OneUser { user }
}

/// Returns bytes as Go's JSON has them: standard base64 with padding.
pub fn base64(data: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(data)
}

/// Serialises a number only when it is not zero; for structs outside this module.
pub fn skip_zero(v: &i64) -> bool {
    *v == 0
}

/// Serialises a 32-bit number only when it is not zero.
pub fn skip_zero32(v: &i32) -> bool {
    *v == 0
}

/// Serialises a truth value only when it is true.
pub fn skip_false(v: &bool) -> bool {
    !*v
}
