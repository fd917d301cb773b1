//! A process with sockets, which does what it is told by lines of its standard input, and answers each
//! with `{"event":"done","ok":…}`. For tests of faults of single processes.
//!
//! `subject once COMMAND` does one and exits with 0 if that succeeded.
//!
//! Like a service of systemd, it takes the listener that it was passed, if `LISTEN_FDS` says so
//! (`sd_listen_fds(3)`).

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::FromRawFd as _,
    path::Path,
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant, SystemTime},
};

use nix::{
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, fork},
};
use serde_json::json;

/// How long to wait for an answer. Without faults it takes far less than a millisecond.
const TIMEOUT: Duration = Duration::from_millis(500);

const WORD: &[u8; 5] = b"hello";

/// Its sockets, by the order in which they came.
#[derive(Default)]
struct Sockets {
    tcp: Vec<TcpStream>,
    udp: Vec<UdpSocket>,
    listeners: Vec<TcpListener>,
    children: Vec<Child>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut sockets = Sockets::default();
    match arguments.split_first() {
        None => {
            if std::env::var_os("LISTEN_FDS").is_some() {
                // SAFETY: the first descriptor that is passed is 3, and nothing else owns it.
                sockets.listeners.push(unsafe { TcpListener::from_raw_fd(3) });
            }
            say(&json!({"event": "ready"}));
            for line in io::stdin().lines().map_while(Result::ok) {
                let words: Vec<&str> = line.split_whitespace().collect();
                let ok = act(&mut sockets, &words);
                say(&json!({"event": "done", "ok": ok.is_ok()}));
            }
            ExitCode::SUCCESS
        }
        Some((first, rest)) if first == "once" => {
            let words: Vec<&str> = rest.iter().map(String::as_str).collect();
            act(&mut sockets, &words).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS)
        }
        Some(_) => ExitCode::FAILURE,
    }
}

fn say(value: &serde_json::Value) {
    println!("{value}");
}

fn act(sockets: &mut Sockets, words: &[&str]) -> io::Result<()> {
    let invalid = || io::Error::other("no such command");
    match words {
        // Answer what comes, by TCP and UDP.
        ["serve", at] => serve(address(at)?),
        ["connect", to] => connect(address(to)?).map(|stream| sockets.tcp.push(stream)),
        ["open", to] => open(address(to)?).map(|socket| sockets.udp.push(socket)),
        ["listen", at] => TcpListener::bind(address(at)?).map(|it| sockets.listeners.push(it)),
        // Accept a connection and answer what its peer asks.
        ["reply"] => answer(&mut accept(sockets.listeners.first().ok_or_else(invalid)?)?),
        ["accept"] => {
            let listener = sockets.listeners.first().ok_or_else(invalid)?;
            accept(listener).map(|stream| sockets.tcp.push(stream))
        }
        ["tcp", number] => exchange_tcp(sockets.tcp.get_mut(index(number)?).ok_or_else(invalid)?),
        ["udp", number] => exchange_udp(sockets.udp.get(index(number)?).ok_or_else(invalid)?),
        // Answer what the peer of a connection asks.
        ["answer", number] => answer(sockets.tcp.get_mut(index(number)?).ok_or_else(invalid)?),
        ["new-tcp", to] => exchange_tcp(&mut connect(address(to)?)?),
        ["new-udp", to] => exchange_udp(&open(address(to)?)?),
        // Do it in another program.
        ["child", rest @ ..] => {
            success(Command::new("/proc/self/exe").arg("once").args(rest).status()?)
        }
        // Start a child that does it, and go on.
        ["start", rest @ ..] => {
            let child = Command::new("/proc/self/exe").arg("once").args(rest).spawn()?;
            sockets.children.push(child);
            Ok(())
        }
        // Wait for that child.
        ["end"] => success(sockets.children.pop().ok_or_else(invalid)?.wait()?),
        ["run", program, rest @ ..] => {
            success(Command::new(program).args(rest).stdout(Stdio::null()).status()?)
        }
        ["rename", name] => fs::write("/proc/self/comm", name),
        // Close first, which leads to TIME_WAIT.
        ["close", number] => {
            let mut stream = sockets.tcp.remove(index(number)?);
            stream.shutdown(Shutdown::Write)?;
            stream.read(&mut [0]).map(drop)
        }
        // Do it once this file is there.
        ["once-there", file, rest @ ..] => {
            while !Path::new(file).exists() {
                thread::sleep(Duration::from_millis(2));
            }
            if rest.is_empty() { Ok(()) } else { act(sockets, rest) }
        }
        // Start a program, and go on.
        ["spawn", program, rest @ ..] => {
            let child = Command::new(program).args(rest).stdout(Stdio::null()).spawn()?;
            sockets.children.push(child);
            Ok(())
        }
        // Whether its clock is an hour ahead of that by which files are dated.
        ["skewed", file] => {
            fs::write(file, "")?;
            let dated = fs::metadata(file)?.modified()?;
            fs::remove_file(file)?;
            let ahead = SystemTime::now().duration_since(dated).map_err(io::Error::other)?;
            if ahead > Duration::from_mins(30) { Ok(()) } else { Err(io::Error::other("true")) }
        }
        // Do it in a process that executes no program.
        ["fork", rest @ ..] => in_fork(sockets, rest),
        _ => Err(invalid()),
    }
}

fn success(status: ExitStatus) -> io::Result<()> {
    if status.success() { Ok(()) } else { Err(io::Error::other("the child failed")) }
}

fn address(text: &str) -> io::Result<SocketAddr> {
    text.parse().map_err(io::Error::other)
}

fn index(text: &str) -> io::Result<usize> {
    text.parse().map_err(io::Error::other)
}

fn in_fork(sockets: &mut Sockets, words: &[&str]) -> io::Result<()> {
    // SAFETY: this program has one thread.
    match unsafe { fork() }? {
        ForkResult::Child => std::process::exit(i32::from(act(sockets, words).is_err())),
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            _ => Err(io::Error::other("the child failed")),
        },
    }
}

fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn open(to: SocketAddr) -> io::Result<UdpSocket> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    Ok(socket)
}

fn accept(listener: &TcpListener) -> io::Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let end = Instant::now() + TIMEOUT;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                return Ok(stream);
            }
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(2)),
        }
    }
}

fn exchange_tcp(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(WORD)?;
    stream.read_exact(&mut [0; WORD.len()])
}

fn answer(stream: &mut TcpStream) -> io::Result<()> {
    let mut word = [0; WORD.len()];
    stream.read_exact(&mut word)?;
    stream.write_all(&word)
}

fn exchange_udp(socket: &UdpSocket) -> io::Result<()> {
    socket.send(WORD)?;
    socket.recv(&mut [0; WORD.len()]).map(drop)
}

fn serve(at: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(at)?;
    let socket = UdpSocket::bind(at)?;
    thread::spawn(move || {
        let mut word = [0; WORD.len()];
        while let Ok((length, from)) = socket.recv_from(&mut word) {
            // The peer may be gone.
            let _ = socket.send_to(&word[..length], from);
        }
    });
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || while answer(&mut stream).is_ok() {});
        }
    });
    Ok(())
}
