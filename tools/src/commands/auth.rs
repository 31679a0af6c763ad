//! Passwords and `auth-node`.

use crate::{Context, Outcome};
use std::io::{BufRead, IsTerminal};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;
use wire::auth::{ClusterKey, PasswordSalt};
use wire::{Status, hello};

/// From a file, the terminal, or the first line of standard input.
pub fn ask_password(prompt: &str, file: Option<&Path>) -> Outcome<String> {
    let password = if let Some(path) = file {
        std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?
    } else if std::io::stdin().is_terminal() {
        rpassword::prompt_password(prompt).map_err(|e| format!("reading the password: {e}"))?
    } else {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).map_err(|e| format!("reading the password: {e}"))?;
        line
    };
    let password = password.trim_end_matches(['\n', '\r']).to_string();
    if password.is_empty() { Err("the password is empty".into()) } else { Ok(password) }
}

/// Asks twice on a terminal.
pub fn new_key(file: Option<&Path>) -> Outcome<ClusterKey> {
    let password = ask_password("Please enter password for cluster: ", file)?;
    if file.is_none() && std::io::stdin().is_terminal() {
        let again = ask_password("Please repeat the password: ", None)?;
        if again != password {
            return Err("the two passwords differ; nothing was done".into());
        }
    }
    ClusterKey::from_password(&password, PasswordSalt::with_salt(shards::host::random_bytes()))
}

/// Stores the key for this node, readable by root only.
pub fn store_key(context: &Context, key: &ClusterKey) -> Outcome {
    let dir = context.cluster_dir()?;
    let path = dir.join("auth_digest.key");
    let fail = |e: std::io::Error| format!("{}: {e}", path.display());
    std::fs::create_dir_all(&dir).map_err(fail)?;
    let aside = dir.join("auth_digest.key.new");
    std::fs::write(&aside, "").map_err(fail)?;
    std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    std::fs::write(&aside, key.to_text()).map_err(fail)?;
    std::fs::File::open(&aside).and_then(|f| f.sync_all()).map_err(fail)?;
    std::fs::rename(&aside, &path).map_err(fail)
}

/// Proves the password to a metadata server and keeps the key.
pub fn auth_node(context: &Context, password_file: Option<&Path>, bootstrap: &[SocketAddr]) -> Outcome {
    let cluster = context.cluster()?;
    let known = if bootstrap.is_empty() { context.mds()? } else { [bootstrap, &context.bs_list()?].concat() };
    let (salt, from) = find_salt(cluster, &known)?;
    let password = ask_password("Please enter password for cluster: ", password_file)?;
    let key = ClusterKey::from_password(&password, salt)?;
    crate::mds_link::connect(cluster, &key, from).map_err(|e| match e.status {
        Some(Status::WrongPassword) => {
            format!("wrong password: {from} of cluster '{cluster}' does not accept it. Nothing was stored; try again")
        }
        _ => format!("{from}: {}. Nothing was stored", e.why),
    })?;
    store_key(context, &key)?;
    context.add_to_bs_list(bootstrap)?;
    println!("This node is authenticated in cluster '{cluster}'.");
    Ok(())
}

fn find_salt(cluster: &str, known: &[SocketAddr]) -> Outcome<(PasswordSalt, SocketAddr)> {
    let mut tried = Vec::new();
    for &addr in known {
        let ask = || -> Outcome<PasswordSalt> {
            let timeout = Duration::from_secs(2);
            let mut conn = crate::mds_link::connect_encrypted(addr, timeout)?;
            conn.send(&hello::ask_salt().encode()).map_err(|e| e.to_string())?;
            hello::read_salt(&crate::mds_link::receive(&mut conn, timeout)?)
        };
        match ask() {
            Ok(salt) => return Ok((salt, addr)),
            Err(why) => tried.push(format!("{addr}: {why}")),
        }
    }
    Err(format!("no metadata server of '{cluster}' answers. Tried:\n  {}", tried.join("\n  ")))
}
