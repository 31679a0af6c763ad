//! A virtual Ethernet card whose other end is this process (Linux TAP), for tests that make a network of their own.
//!
//! The card lives in the network namespace of the thread that opens it; frames are sent and received from any thread.
//! It is gone with its last [`Tap`], and with the process at the latest: nothing is left to clean up.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

const DEVICE: &str = "/dev/net/tun";
const LOOPBACK: &str = "lo";

/// What a new card is given.
#[derive(Clone, Copy, Debug)]
pub struct TapConfig {
    /// Name of the interface, at most 15 bytes.
    pub name: &'static str,
    pub mac: [u8; 6],
    pub ip: Ipv4Addr,
    pub netmask: Ipv4Addr,
    /// Largest IP packet, bytes.
    pub mtu: u16,
}

pub struct Tap {
    file: File,
}

impl Tap {
    /// Makes the card in this thread's network namespace and brings it up, and the loopback interface with it.
    pub fn open(config: &TapConfig) -> io::Result<Tap> {
        let explain = |e: io::Error| {
            let why = format!("{DEVICE}: {e} (needs root, and the kernel module tun: modprobe tun)");
            io::Error::new(e.kind(), why)
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(DEVICE)
            .map_err(explain)?;
        let mut request = named(config.name);
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        ioctl(&file, libc::TUNSETIFF as _, &mut request).map_err(explain)?;

        let control = datagram_socket()?;
        let set = |code: u32, change: &dyn Fn(&mut libc::ifreq)| {
            let mut request = named(config.name);
            change(&mut request);
            ioctl(&control, code as _, &mut request)
        };
        set(libc::SIOCSIFHWADDR as u32, &|r| {
            let mut address = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: [0; 14] };
            for (to, from) in address.sa_data.iter_mut().zip(config.mac) {
                *to = from as libc::c_char;
            }
            r.ifr_ifru.ifru_hwaddr = address;
        })?;
        set(libc::SIOCSIFMTU as u32, &|r| r.ifr_ifru.ifru_mtu = config.mtu.into())?;
        set(libc::SIOCSIFADDR as u32, &|r| r.ifr_ifru.ifru_addr = inet(config.ip))?;
        set(libc::SIOCSIFNETMASK as u32, &|r| r.ifr_ifru.ifru_netmask = inet(config.netmask))?;
        for name in [config.name, LOOPBACK] {
            let mut request = named(name);
            request.ifr_ifru.ifru_flags =
                (libc::IFF_UP | libc::IFF_RUNNING | libc::IFF_MULTICAST) as libc::c_short;
            ioctl(&control, libc::SIOCSIFFLAGS as _, &mut request)?;
        }
        Ok(Tap { file })
    }

    /// The next frame the host sent; `None` if there was none within `timeout`. `buf` must hold
    /// the MTU and 14 bytes of header; a longer frame is cut.
    pub fn receive(&self, buf: &mut [u8], timeout: Duration) -> io::Result<Option<usize>> {
        loop {
            match (&self.file).read(buf) {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e),
            }
            let mut wanted = libc::pollfd { fd: self.file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            let timeout_ms = timeout.as_millis().min(i32::MAX as u128) as libc::c_int;
            // SAFETY: the pointer is to one live pollfd, as the count says.
            let ready = unsafe { libc::poll(&mut wanted, 1, timeout_ms) };
            if ready == 0 {
                return Ok(None);
            }
        }
    }

    /// Hands the host a frame. One that it has no room for is lost, as on a wire.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        match (&self.file).write(frame) {
            Ok(_) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(e) => Err(e),
        }
    }
}

fn named(name: &str) -> libc::ifreq {
    assert!(name.len() < libc::IFNAMSIZ, "an interface name has at most 15 bytes: {name}");
    // SAFETY: an ifreq is plain data, for which all zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// The address as these requests take it: the port and the rest are zero.
fn inet(ip: Ipv4Addr) -> libc::sockaddr {
    let mut address = libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: [0; 14] };
    for (to, from) in address.sa_data[2..].iter_mut().zip(ip.octets()) {
        *to = from as libc::c_char;
    }
    address
}

fn ioctl(file: &impl AsRawFd, code: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: all codes used here take a pointer to an ifreq, which is live and whole.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), code as _, request as *mut libc::ifreq) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn datagram_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
