//! What pods of scripts/test-cluster run: each subcommand is a program.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::ExitCode,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use clap::Parser;

/// How long a request may take.
const TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Parser)]
enum Command {
    /// Does nothing, as the process that holds the namespaces of a pod.
    Pause,
    /// Answers TCP connections.
    Serve { port: u16 },
    /// Asks a server, and prints how many ms each answer takes. Fails if there is none.
    Get {
        server: SocketAddr,
        #[arg(default_value_t = 1)]
        count: u32,
    },
    /// Prints the time in seconds, five times a second.
    Clock,
    /// Answers DNS questions: NAME has ADDRESS, all other names do not exist.
    Dns { name: String, address: Ipv4Addr },
}

fn main() -> ExitCode {
    match run(Command::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pod: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> io::Result<()> {
    match command {
        Command::Pause => loop {
            thread::park();
        },
        Command::Serve { port } => {
            for client in TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?.incoming() {
                // A client may have gone.
                let _ = client.and_then(|mut client| client.write_all(b"hello\n"));
            }
            Ok(())
        }
        Command::Get { server, count } => {
            for _ in 0..count {
                let began = Instant::now();
                let mut stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
                stream.set_read_timeout(Some(TIMEOUT))?;
                stream.read_to_end(&mut Vec::new())?;
                println!("{}", began.elapsed().as_millis());
            }
            Ok(())
        }
        Command::Clock => loop {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_err(io::Error::other)?;
            println!("{}", now.as_secs());
            thread::sleep(Duration::from_millis(200));
        },
        Command::Dns { name, address } => serve_names(&name, address),
    }
}

/// The length of the header of a message, see RFC 1035, section 4.1.1.
const HEADER: usize = 12;

fn serve_names(name: &str, address: Ipv4Addr) -> io::Result<()> {
    const RESPONSE: u8 = 0x84;
    const NO_SUCH_NAME: u8 = 3;
    const TYPE_A: [u8; 2] = [0, 1];
    let labels: Vec<u8> = name
        .split('.')
        .flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat())
        .collect();
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53))?;
    let mut buffer = [0; 512];
    loop {
        let (length, client) = socket.recv_from(&mut buffer)?;
        let Some(question) = buffer[..length].get(HEADER..) else { continue };
        let Some(end) = question.iter().position(|&byte| byte == 0) else { continue };
        let Some(kind) = question.get(end + 1..end + 3) else { continue };
        let is_known = question[..end].eq_ignore_ascii_case(&labels);
        let has_address = is_known && kind == TYPE_A;
        let mut answer = buffer[..2].to_vec();
        let code = if is_known { 0 } else { NO_SUCH_NAME };
        answer.extend([RESPONSE, code, 0, 1, 0, u8::from(has_address), 0, 0, 0, 0]);
        answer.extend(&question[..(end + 5).min(question.len())]);
        if has_address {
            // The name of the question, type A, class IN, valid for 1 s, 4 bytes.
            answer.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
            answer.extend(address.octets());
        }
        socket.send_to(&answer, client)?;
    }
}
