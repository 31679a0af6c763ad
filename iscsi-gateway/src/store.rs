//! Records in the cluster: below a directory, a directory for each target with its record, its LUNs' files and their reservations,
//! and one with accounts.
//!
//! ```text
//! /iscsi/IQN/target          record, JSON
//! /iscsi/IQN/lun0            blocks
//! /iscsi/IQN/reservations0   persistent reservations of LUN 0, JSON
//! /iscsi/accounts/USER       record, JSON, readable by root only
//! ```
//! A record is replaced as a whole, by renaming. Who changes one holds the write lease of the file `lock` beside it, so that two hosts
//! that do so at once do it one after the other.

use crate::record::{AccountRecord, Target, check_iqn};
use crate::{Error, Result};
use client::{Cluster, File};
use iscsi::scsi::reservation::Reservations;
use serde::Serialize;
use serde::de::DeserializeOwned;
use shards::Buf;
use wire::mds_api::{FileKind, LeaseMode, MdsReply, MdsRequest};

/// Longest record.
const MAX_RECORD_BYTES: u64 = 1 << 20;
const ACCOUNTS: &str = "accounts";

/// Where records lie in a cluster. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    cluster: Cluster,
    root: String,
}

/// A record that only we may change.
pub struct Locked {
    store: Store,
    pub target: Target,
    lock: File,
}

impl Locked {
    /// Stores the record as it is now, and lets others change it.
    pub fn save(self) -> Result {
        let path = self.store.path(&self.target.iqn, "target");
        self.store.write(&path, &self.target)?;
        self.lock.close().map_err(Error::cluster(&path))
    }
}

impl Store {
    pub fn new(cluster: &Cluster, root: &str) -> Store {
        Store { cluster: cluster.clone(), root: root.trim_matches('/').to_string() }
    }

    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    fn path(&self, directory: &str, name: &str) -> String {
        format!("/{}/{directory}/{name}", self.root)
    }

    pub fn lun_path(&self, iqn: &str, lun: u16) -> String {
        self.path(iqn, &format!("lun{lun}"))
    }

    fn reservations_path(&self, iqn: &str, lun: u16) -> String {
        self.path(iqn, &format!("reservations{lun}"))
    }

    fn make_directories(&self, directory: &str) -> Result {
        let mut path = String::new();
        for part in self.root.split('/').chain([directory]).filter(|part| !part.is_empty()) {
            path = format!("{path}/{part}");
            match self.cluster.mkdir(&path, 0o700) {
                Err(error) if error.status() != Some(wire::Status::Exists) => {
                    return Err(Error::Cluster { path, source: error });
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn read<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let read = || {
            let file = self.cluster.open(path, LeaseMode::Read)?;
            let size_bytes = file.attr()?.size_bytes.min(MAX_RECORD_BYTES);
            let bytes = file.read_at(0, size_bytes as usize)?;
            file.close()?;
            Ok(bytes)
        };
        let bytes = read().map_err(Error::cluster(path))?;
        serde_json::from_slice(&bytes).map_err(|source| Error::Record { path: path.into(), source })
    }

    fn write(&self, path: &str, value: &impl Serialize) -> Result {
        let bytes =
            serde_json::to_vec_pretty(value).map_err(|source| Error::Record { path: path.into(), source })?;
        let new = format!("{path}.new");
        let write = || {
            let file = self.cluster.create(&new, 0o600, false)?;
            file.truncate(0)?;
            file.write_at(0, Buf::from_slice(&bytes))?;
            file.fsync()?;
            file.close()?;
            self.cluster.rename(&new, path)
        };
        write().map_err(Error::cluster(path))
    }

    fn names(&self, directory: &str) -> Result<Vec<(String, FileKind)>> {
        match self.cluster.list(directory) {
            Ok(entries) => Ok(entries.into_iter().map(|e| (e.name, e.attr.kind)).collect()),
            Err(error) if error.status() == Some(wire::Status::NotFound) => Ok(Vec::new()),
            Err(error) => Err(Error::Cluster { path: directory.into(), source: error }),
        }
    }

    // Targets.

    pub fn targets(&self) -> Result<Vec<Target>> {
        let names = self.names(&format!("/{}", self.root))?;
        let iqns =
            names.iter().filter(|(name, kind)| *kind == FileKind::Directory && check_iqn(name).is_ok());
        let mut all = Vec::new();
        for (iqn, _) in iqns {
            match self.target(iqn) {
                Ok(target) => all.push(target),
                // Being made, or deleted, at this moment.
                Err(Error::Refused(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    pub fn target(&self, iqn: &str) -> Result<Target> {
        check_iqn(iqn)?;
        self.read(&self.path(iqn, "target")).map_err(|error| match error.is_missing() {
            true => Error::Refused(format!("there is no target {iqn}: 'pstorage-iscsi list' shows all")),
            false => error,
        })
    }

    /// Takes a record to change it.
    pub fn lock(&self, iqn: &str) -> Result<Locked> {
        // Else the lock's file would be made for a target that is not there.
        self.target(iqn)?;
        let path = self.path(iqn, "lock");
        let lock = self.cluster.create(&path, 0o600, false).map_err(Error::cluster(&path))?;
        // Who had the lock before has changed it, perhaps.
        let target = self.target(iqn)?;
        Ok(Locked { store: self.clone(), target, lock })
    }

    pub fn create(&self, target: &Target) -> Result {
        let iqn = &target.iqn;
        check_iqn(iqn)?;
        self.make_directories(iqn)?;
        let path = self.path(iqn, "target");
        match self.target(iqn) {
            Ok(_) => {
                Error::refused(format!("there is a target {iqn} already: 'pstorage-iscsi list' shows all"))
            }
            Err(Error::Refused(_)) => self.write(&path, target),
            Err(error) => Err(error),
        }
    }

    /// Deletes a target with all that its LUNs hold.
    pub fn delete(&self, iqn: &str) -> Result {
        let directory = format!("/{}/{iqn}", self.root);
        let mut names = self.names(&directory)?;
        // The record goes last: a deletion that breaks off can be asked for again.
        names.sort_by_key(|(name, _)| name == "target");
        for (name, _) in names {
            let path = self.path(iqn, &name);
            self.cluster.unlink(&path).map_err(Error::cluster(&path))?;
        }
        self.cluster.rmdir(&directory).map_err(Error::cluster(&directory))
    }

    /// Makes a LUN's file: thin, it takes no room until it is written.
    pub fn create_lun(&self, iqn: &str, lun: u16, size_bytes: u64) -> Result {
        let path = self.lun_path(iqn, lun);
        let file = self.cluster.create(&path, 0o600, true).map_err(Error::cluster(&path))?;
        let sized = file.truncate(size_bytes);
        sized.and(file.close()).map_err(|error| {
            let _ = self.cluster.unlink(&path); // Of no use without its size.
            Error::cluster(&path)(error)
        })
    }

    pub fn delete_lun(&self, iqn: &str, lun: u16) -> Result {
        for path in [self.lun_path(iqn, lun), self.reservations_path(iqn, lun)] {
            match self.cluster.unlink(&path) {
                Err(error) if error.status() != Some(wire::Status::NotFound) => {
                    return Err(Error::Cluster { path, source: error });
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub fn lun_size_bytes(&self, iqn: &str, lun: u16) -> Result<u64> {
        let path = self.lun_path(iqn, lun);
        Ok(self.cluster.stat(&path).map_err(Error::cluster(&path))?.size_bytes)
    }

    /// Makes a LUN that nobody serves larger.
    pub fn grow_lun(&self, iqn: &str, lun: u16, size_bytes: u64) -> Result {
        let path = self.lun_path(iqn, lun);
        let grow = || {
            let file = self.cluster.open(&path, LeaseMode::Write)?;
            file.truncate(size_bytes)?;
            file.close()
        };
        grow().map_err(Error::cluster(&path))
    }

    /// Takes the leases of the LUNs' files from whoever has them: he can't write any more when others can.
    pub fn revoke(&self, target: &Target) -> Result {
        for lun in &target.luns {
            let path = self.lun_path(&target.iqn, lun.lun);
            let revoke = || {
                let file = self.cluster.stat(&path)?.file;
                self.cluster.mds(MdsRequest::Revoke { file })
            };
            match revoke().map_err(Error::cluster(&path))? {
                MdsReply::Done | MdsReply::Revoking { .. } => {}
                other => return Error::refused(format!("{path}: unexpected answer {other:?}")),
            }
        }
        Ok(())
    }

    // Reservations.

    pub fn reservations(&self, iqn: &str, lun: u16) -> Result<Reservations> {
        match self.read(&self.reservations_path(iqn, lun)) {
            Err(error) if error.is_missing() => Ok(Reservations::default()),
            other => other,
        }
    }

    pub fn keep_reservations(&self, iqn: &str, lun: u16, reservations: &Reservations) -> Result {
        self.write(&self.reservations_path(iqn, lun), reservations)
    }

    // Accounts.

    pub fn accounts(&self) -> Result<Vec<String>> {
        let names = self.names(&format!("/{}/{ACCOUNTS}", self.root))?;
        Ok(names.into_iter().map(|(name, _)| name).filter(|name| !name.ends_with(".new")).collect())
    }

    pub fn account(&self, user: &str) -> Result<AccountRecord> {
        self.read(&self.path(ACCOUNTS, user)).map_err(|error| match error.is_missing() {
            true => Error::Refused(format!(
                "there is no account '{user}': make it with 'pstorage-iscsi account-create -u {user}'"
            )),
            false => error,
        })
    }

    pub fn set_account(&self, account: &AccountRecord) -> Result {
        self.make_directories(ACCOUNTS)?;
        self.write(&self.path(ACCOUNTS, &account.user), account)
    }

    pub fn delete_account(&self, user: &str) -> Result {
        let path = self.path(ACCOUNTS, user);
        self.cluster.unlink(&path).map_err(Error::cluster(&path))
    }
}
