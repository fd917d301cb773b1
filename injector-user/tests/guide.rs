//! The commands in the documentation: each code block of these pages is run, and prints what the page says.
//!
//! docs/development.md describes the format of blocks and markers.

use std::{
    fs,
    io::Write as _,
    os::unix::{fs::symlink, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::Instant,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use pulldown_cmark::{CodeBlockKind, Event, Parser, Tag, TagEnd};
use regex::{Captures, Regex};
use testbed::{Family, INJECTOR, Lab, TIMEOUT, container::Machine};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Printed after each command, with its exit code.
const END: &str = "guide-test-end-of-command";

/// A line of expected output: the reader presses Ctrl-C.
const INTERRUPT: &str = "^C";

/// What the markers before a block say.
#[derive(Debug, Default, Clone)]
struct Markers {
    /// Why the block is not run.
    not_run: Option<String>,
    /// The name of the file that the block shows.
    file: Option<String>,
    /// Commands that set the scene, which the reader has in another form.
    prepare: Option<String>,
    /// Numbers in the output differ from run to run.
    numbers_vary: bool,
    /// The block is typed in a second terminal, and runs beside what follows.
    second_terminal: bool,
    /// What runs in the second terminal does not end with this block.
    continues: bool,
}

#[derive(Debug)]
struct Block {
    language: String,
    text: String,
    markers: Markers,
}

/// A command and the lines that it prints. Without them, the output is not compared.
#[derive(Debug)]
struct Step {
    command: String,
    output: Option<Vec<String>>,
}

/// The code blocks of a page.
fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut markers = Markers::default();
    let mut code: Option<(String, String)> = None;
    let mut comment: Option<String> = None;
    for event in Parser::new(page) {
        match event {
            Event::Start(Tag::HtmlBlock) => comment = Some(String::new()),
            Event::Html(text) => comment.get_or_insert_default().push_str(&text),
            Event::End(TagEnd::HtmlBlock) => {
                for marker in comment.take().unwrap_or_default().split("-->") {
                    read_marker(marker, &mut markers);
                }
            }
            Event::Start(Tag::CodeBlock(kind)) => {
                let language = match kind {
                    CodeBlockKind::Fenced(language) => language.to_string(),
                    CodeBlockKind::Indented => {
                        panic!("an indented code block: give it a fence and a language")
                    }
                };
                code = Some((language, String::new()));
            }
            Event::Text(text) => {
                if let Some((_, code)) = &mut code {
                    code.push_str(&text);
                }
            }
            Event::End(TagEnd::CodeBlock) => {
                let (language, text) = code.take().expect("it began");
                blocks.push(Block { language, text, markers: std::mem::take(&mut markers) });
            }
            _ => (),
        }
    }
    blocks
}

fn read_marker(text: &str, markers: &mut Markers) {
    let Some((_, text)) = text.split_once("<!--") else { return };
    let text = text.trim();
    if let Some(reason) = text.strip_prefix("not run:") {
        assert!(!reason.trim().is_empty(), "a block that is not run needs a reason");
        markers.not_run = Some(reason.trim().to_owned());
    } else if let Some(name) = text.strip_prefix("file:") {
        markers.file = Some(name.trim().to_owned());
    } else if let Some(commands) = text.strip_prefix("prepare:") {
        markers.prepare = Some(commands.trim().to_owned());
    } else {
        match text {
            "numbers vary" => markers.numbers_vary = true,
            "second terminal" => markers.second_terminal = true,
            "second terminal continues" => markers.continues = true,
            // Any other comment.
            _ => (),
        }
    }
}

/// `console` has commands after `$ `, each with its output. The lines of `sh` are one command.
fn steps(block: &Block) -> Vec<Step> {
    if block.language == "sh" {
        return vec![Step { command: block.text.clone(), output: None }];
    }
    let mut steps: Vec<Step> = Vec::new();
    for line in block.text.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step { command: command.to_owned(), output: Some(Vec::new()) });
            continue;
        }
        let step = steps.last_mut().expect("a console block begins with a command");
        let output = step.output.get_or_insert_default();
        match line.strip_prefix("> ") {
            Some(rest) if output.is_empty() => step.command.extend(["\n", rest]),
            _ => output.push(line.trim_end().to_owned()),
        }
    }
    steps
}

/// A line of expected output. `…` stands for any text.
fn pattern(line: &str, numbers_vary: bool) -> Regex {
    let parts = line.split('…').map(|part| {
        let text = regex::escape(part);
        if !numbers_vary {
            return text;
        }
        // Escaped dots are a part of numbers. A duration may have another unit.
        let number =
            Regex::new(r"\d+(?:\\\.\d+)*((?:ns|us|µs|ms|s)\b)?").expect("a regular expression");
        let any = |found: &Captures<'_>| {
            let unit = if found.get(1).is_some() { "(?:ns|us|µs|ms|s)" } else { "" };
            format!(r"\d+(?:\.\d+)*{unit}")
        };
        number.replace_all(&text, any).into_owned()
    });
    let whole = parts.collect::<Vec<_>>().join(".*");
    Regex::new(&format!("^{whole}$")).expect("a regular expression")
}

/// Whether the output is as expected. A line `…` stands for any number of lines.
fn matches(expected: &[String], lines: &[String], numbers_vary: bool) -> bool {
    match expected.split_first() {
        None => lines.is_empty(),
        Some((first, rest)) if first.trim() == "…" => {
            (0..=lines.len()).any(|skip| matches(rest, &lines[skip..], numbers_vary))
        }
        Some((first, rest)) => lines.split_first().is_some_and(|(line, lines)| {
            pattern(first, numbers_vary).is_match(line) && matches(rest, lines, numbers_vary)
        }),
    }
}

/// Whether a terminal could have shown the output: the reports of injector, and what the command prints, are each in
/// order, but not one relative to the other.
fn is_shown(expected: &[String], lines: &[String], numbers_vary: bool) -> bool {
    let part = |lines: &[String], reports: bool| -> Vec<String> {
        let is_part =
            |line: &&String| line.trim() == "…" || line.starts_with("injector: ") == reports;
        lines.iter().filter(is_part).cloned().collect()
    };
    [true, false]
        .into_iter()
        .all(|reports| matches(&part(expected, reports), &part(lines, reports), numbers_vary))
}

/// A shell in the namespaces of the test.
struct Terminal {
    child: Child,
    input: ChildStdin,
    output: Receiver<String>,
}

impl Terminal {
    fn open(mut command: Command, folder: &Path) -> Self {
        let path = format!(
            "{}:{}",
            folder.join("bin").display(),
            std::env::var("PATH").unwrap_or_default()
        );
        // The order of lines on standard output and standard error is that of a terminal.
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let mut child = command
            .current_dir(folder.join("home"))
            .env("PATH", path)
            .env("LC_ALL", "C.UTF-8")
            .env("TZ", "UTC")
            .stdin(Stdio::piped())
            .stdout(writer.try_clone().expect("a descriptor"))
            .stderr(writer)
            .process_group(0)
            .spawn()
            .expect("it can be run");
        drop(command);
        let input = child.stdin.take().expect("it is piped");
        let (sender, output) = mpsc::channel();
        thread::spawn(move || {
            let lines = std::io::BufRead::lines(std::io::BufReader::new(reader));
            for line in lines.map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, input, output }
    }

    fn send(&mut self, command: &str) {
        let script = testbed::scratch_file();
        fs::write(&script, command).expect("it can be written");
        let path = script.display();
        writeln!(
            self.input,
            "source {path} < /dev/null; printf '\\n%s %s\\n' {END} $?; rm -f {path}"
        )
        .expect("the shell runs");
    }

    /// Lines until the end of the command, and its exit code; or until `enough` of them are there.
    fn read(&self, enough: impl Fn(&[String]) -> bool) -> (Vec<String>, Option<i32>) {
        let deadline = Instant::now() + TIMEOUT;
        let mut lines: Vec<String> = Vec::new();
        loop {
            match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.starts_with(END) => {
                    let code = line[END.len()..].trim().parse().expect("a number");
                    while lines.last().is_some_and(String::is_empty) {
                        lines.pop();
                    }
                    return (lines, Some(code));
                }
                Ok(line) => {
                    lines.push(line.trim_end().to_owned());
                    if enough(&lines) {
                        return (lines, None);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("a command does not end; it printed {lines:#?}")
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("the shell ended; it printed {lines:#?}")
                }
            }
        }
    }

    /// Lines until the end of the command, and its exit code.
    fn read_all(&self) -> (Vec<String>, Option<i32>) {
        self.read(|_| false)
    }

    fn group(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // What the commands left in the background ends with the shell.
        let _ = killpg(self.group(), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// A directory with `home`, where commands run, and `bin`, where they find injector and sudo.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = testbed::scratch_file();
        let bin = folder.join("bin");
        fs::create_dir_all(&bin).expect("it can be created");
        fs::create_dir_all(folder.join("home")).expect("it can be created");
        symlink(INJECTOR, bin.join("injector")).expect("it can be created");
        // The test is root already, and sudo would reset PATH.
        fs::write(bin.join("sudo"), "#!/bin/sh\nSUDO_USER=alice exec \"$@\"\n")
            .expect("it can be written");
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(bin.join("sudo"), executable).expect("it is there");
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A command of the second terminal whose end is awaited later.
struct Pending {
    step: Step,
    lines: Vec<String>,
    numbers_vary: bool,
    /// It ends by Ctrl-C, not by itself.
    interrupt: bool,
}

struct Reader {
    page: String,
    // Dropped in this order.
    second: Option<Terminal>,
    first: Terminal,
    folder: Folder,
    pending: Option<Pending>,
}

impl Reader {
    /// Namespaces with a loopback interface, and directories of their own for journals and names of namespaces.
    fn new(page: &str, environment: &[(&str, &Path)]) -> Self {
        let folder = Folder::new();
        let mut command = Command::new("unshare");
        command.envs(environment.iter().copied());
        command.args(["--net", "--mount", "bash", "--noprofile", "--norc", "-c"]).arg(
            "for folder in /run/injector /run/netns; do mkdir -p $folder && mount -t tmpfs guide $folder; done
             ip link set lo up && exec bash --noprofile --norc",
        );
        let mut first = Terminal::open(command, &folder.0);
        first.send(&format!("export ROOT={ROOT}"));
        assert_eq!(first.read_all(), (Vec::new(), Some(0)), "the shell starts");
        Self { page: page.to_owned(), second: None, first, folder, pending: None }
    }

    fn compare(&self, step: &Step, lines: &[String], code: Option<i32>, numbers_vary: bool) {
        let (page, command) = (&self.page, &step.command);
        match &step.output {
            None => assert_eq!(code, Some(0), "{page}: failed: {command}\n{}", lines.join("\n")),
            Some(expected) => assert!(
                is_shown(expected, lines, numbers_vary),
                "{page}: $ {command}\n--- the page has\n{}\n--- it printed\n{}\n---",
                expected.join("\n"),
                lines.join("\n"),
            ),
        }
    }

    fn run(&mut self, block: &Block) {
        if let Some(commands) = &block.markers.prepare {
            let step = Step { command: format!("set -e\n{commands}\nset +e"), output: None };
            self.first.send(&step.command);
            let (lines, code) = self.first.read_all();
            self.compare(&step, &lines, code, false);
        }
        let numbers_vary = block.markers.numbers_vary;
        for step in steps(block) {
            if block.markers.second_terminal {
                self.start(step, numbers_vary);
            } else {
                self.first.send(&step.command);
                let (lines, code) = self.first.read_all();
                self.compare(&step, &lines, code, numbers_vary);
            }
        }
        if !block.markers.second_terminal && !block.markers.continues {
            self.finish();
        }
    }

    /// Starts a command in the second terminal. Waits for what it prints before `^C`, or for its first line.
    fn start(&mut self, mut step: Step, numbers_vary: bool) {
        self.finish();
        let pid = self.first.child.id().to_string();
        let folder = &self.folder.0;
        let terminal = self.second.get_or_insert_with(|| {
            let mut command = Command::new("nsenter");
            command.args(["--target", &pid, "--net", "--mount", "bash", "-c"]);
            // nsenter changes to the root of the namespace.
            command.arg("cd \"$0\" && exec bash --noprofile --norc").arg(folder.join("home"));
            Terminal::open(command, folder)
        });
        terminal.send(&format!("trap : INT\n{}", step.command));
        let expected = step.output.as_mut().expect("console has output");
        let interrupt = expected.iter().position(|line| line == INTERRUPT);
        let before = expected[..interrupt.unwrap_or(1)].to_vec();
        if let Some(interrupt) = interrupt {
            expected.remove(interrupt);
        }
        let (lines, code) = terminal.read(|lines| matches(&before, lines, numbers_vary));
        assert_eq!(code, None, "{}: ended: {}\n{}", self.page, step.command, lines.join("\n"));
        self.pending = Some(Pending { step, lines, numbers_vary, interrupt: interrupt.is_some() });
    }

    /// Ends the command of the second terminal, or waits for its end.
    fn finish(&mut self) {
        if let Some(Pending { step, mut lines, numbers_vary, interrupt }) = self.pending.take() {
            let terminal = self.second.as_ref().expect("it was opened");
            if interrupt {
                killpg(terminal.group(), Signal::SIGINT).expect("it runs");
            }
            let (rest, code) = terminal.read_all();
            lines.extend(rest);
            self.compare(&step, &lines, code, numbers_vary);
        }
    }
}

/// Runs `test` while a container `cart` sends to a container `db`. They are all that injector finds.
fn beside_containers(test: impl FnOnce(&[(&str, &Path)])) {
    if testbed::is_guest() {
        // It skips the page.
        return test(&[]);
    }
    let (lab, machine) = (Lab::new(), Machine::new());
    let start =
        |host, name| machine.start(host, "kubepods/podguide", &Machine::id(name), name, name);
    let (cart, _db) = (start(&lab.left, "cart"), start(&lab.right, "db"));
    let to = lab.right.address(Family::V4);
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                cart.exec(&format!("ping -q -c 20 -i 0.05 -W 1 {to}"));
            }
        });
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            test(&[("INJECTOR_HOST_ROOT", &machine.root)]);
        }));
        is_done.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Runs the blocks of a page. `not_run` is how many of them are not.
fn follow(page: &str, not_run: usize) {
    follow_with(page, not_run, &[]);
}

/// As [`follow`], with additional environment variables.
fn follow_with(page: &str, not_run: usize, environment: &[(&str, &Path)]) {
    if testbed::is_guest() {
        return testbed::skip("no curl");
    }
    let text = fs::read_to_string(Path::new(ROOT).join(page)).expect("it is there");
    let mut reader = Reader::new(page, environment);
    let (mut run, mut left_out) = (0, 0);
    for block in blocks(&text) {
        let is_command = ["sh", "console"].contains(&&*block.language);
        if let Some(reason) = &block.markers.not_run {
            println!(
                "{page}: not run ({reason}): {}",
                block.text.lines().next().unwrap_or_default()
            );
            left_out += 1;
        } else if let Some(name) = &block.markers.file {
            fs::write(reader.folder.0.join("home").join(name), &block.text)
                .expect("it can be written");
        } else if is_command {
            reader.run(&block);
            run += 1;
        }
    }
    reader.finish();
    println!("{page}: {run} blocks run, {left_out} not run");
    assert!(run + left_out > 0, "{page}: no commands");
    assert_eq!(left_out, not_run, "{page}: blocks that are not run");
}

#[test]
fn the_examples_of_the_readme_print_what_it_says() {
    beside_containers(|environment| follow_with("README.md", 1, environment));
}

#[test]
fn the_guide_can_be_followed() {
    follow("docs/guide.md", 1);
}

/// Removes the nodes of the tutorial if it fails before it does so.
struct Nodes;

impl Drop for Nodes {
    fn drop(&mut self) {
        let script = Path::new(ROOT).join("scripts/experiments/redis-nodes");
        let _ = Command::new(script).arg("stop").status();
    }
}

#[test]
fn the_tutorial_of_ddia_can_be_followed() {
    let _turn = testbed::ddia_turn();
    let _nodes = Nodes;
    follow("docs/ddia.md", 1);
}

#[test]
fn traffic_between_containers_is_faulted_as_described() {
    beside_containers(|environment| follow_with("docs/howto/container-to-peer.md", 0, environment));
}

#[test]
fn a_clock_is_set_back_as_described() {
    follow("docs/howto/clock-back.md", 0);
}

#[test]
fn a_timeout_is_found_as_described() {
    follow("docs/howto/client-timeout.md", 0);
}

#[test]
fn three_nodes_are_split_as_described() {
    follow("docs/howto/split-brain.md", 0);
}

#[test]
fn a_lease_outlives_its_holder_as_described() {
    follow("docs/howto/lease.md", 0);
}

#[test]
fn an_api_and_name_servers_fail_as_described() {
    follow("docs/howto/failing-api.md", 0);
    follow("docs/howto/dns.md", 1);
}

/// Requires a service of systemd.
#[test]
fn a_database_is_slowed_down_by_commands_that_are_not_run() {
    follow("docs/howto/slow-database.md", 2);
}

/// Each page with commands is followed by a test of this file.
#[test]
fn all_pages_with_commands_are_followed() {
    let here = include_str!("guide.rs");
    let root = Path::new(ROOT);
    let pages = ["docs", "docs/howto"].into_iter().flat_map(|folder| {
        let files = fs::read_dir(root.join(folder)).expect("it is there");
        files.map(move |file| {
            format!("{folder}/{}", file.expect("it is read").file_name().display())
        })
    });
    for page in pages {
        // There are directories as well.
        let text = fs::read_to_string(root.join(&page)).unwrap_or_default();
        let has_commands = text.lines().any(|line| line.trim_start() == "```console");
        assert!(!has_commands || here.contains(&format!("\"{page}\"")), "{page}");
    }
}

#[test]
fn a_ci_job_runs_under_loss_as_described() {
    follow("docs/howto/ci.md", 0);
}

#[test]
fn the_examples_of_faults_print_what_their_pages_say() {
    let pages = fs::read_dir(Path::new(ROOT).join("docs/faults")).expect("it is there");
    let mut pages: Vec<String> = pages
        .map(|page| page.expect("it is read").file_name().into_string().expect("text"))
        .filter(|name| name != "index.md")
        .collect();
    pages.sort();
    for page in &pages {
        // Not every kernel has the controllers of cgroup v2, or permits eBPF to fail system calls.
        let not_run = ["cpu.md", "errno.md", "io.md"].contains(&page.as_str());
        follow(&format!("docs/faults/{page}"), usize::from(not_run));
    }
}

#[test]
fn a_page_that_differs_from_what_is_printed_is_noticed() {
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let printed = lines("injector: 36 packets matched, 6 dropped\nlast");
    for (page, numbers_vary, same) in [
        ("injector: 36 packets matched, 6 dropped\nlast", false, true),
        ("injector: 1 packets matched, 2 dropped\nlast", true, true),
        ("injector: 1 packets matched, 2 dropped\nlast 1ms", true, false),
        ("injector: 1 packets matched, 2 dropped\nlast", false, false),
        ("injector: 1 packets matched, 2 delayed\nlast", true, false),
        ("injector: … dropped\nlast", false, true),
        ("…\nlast", false, true),
        ("injector: 36 packets matched, 6 dropped", false, false),
        ("injector: 36 packets matched, 6 dropped\nlast\n…", false, true),
    ] {
        assert_eq!(matches(&lines(page), &printed, numbers_vary), same, "{page}");
    }
    assert!(
        matches(&lines("8ms: a"), &lines("1.5s: a"), true)
            && !matches(&lines("8ms"), &lines("1.5"), true)
    );
    let page = lines("injector: begins\n1\ninjector: ends");
    for (printed, shown) in [
        ("1\ninjector: begins\ninjector: ends", true),
        ("injector: ends\ninjector: begins\n1", false),
        ("injector: begins\ninjector: ends", false),
    ] {
        assert_eq!(is_shown(&page, &lines(printed), false), shown, "{printed}");
    }
    let page = "<!-- numbers vary -->\n<!-- second terminal -->\n```console\n$ a \\\n> b\n1\n$ c\n```\n\n```sh\nd\n```\n";
    let blocks = blocks(page);
    assert!(blocks[0].markers.numbers_vary && blocks[0].markers.second_terminal);
    assert!(!blocks[1].markers.numbers_vary, "markers are for one block");
    let steps = steps(&blocks[0]);
    assert_eq!((&*steps[0].command, &steps[0].output), ("a \\\nb", &Some(vec!["1".to_owned()])));
    assert_eq!((&*steps[1].command, &steps[1].output), ("c", &Some(Vec::new())));
}

/// Options of other programs, and one of which the documentation says that it does not exist.
const ELSEWHERE: [&str; 4] = ["syscall-delay", "set", "short", "out"];

/// The names of options in text that begins with one, or with a command of injector.
fn options(text: &str) -> Vec<String> {
    let text = text.strip_prefix("$ ").unwrap_or(text);
    let text = text.strip_prefix("sudo ").unwrap_or(text);
    let is_command =
        ["injector ", "inject ", "run ", "apply "].iter().any(|name| text.starts_with(name));
    let words = text.split_whitespace().take_while(|word| *word != "--");
    words
        .take(if is_command { usize::MAX } else { 1 })
        .filter_map(|word| word.strip_prefix("--"))
        .map(|word| word.split(['=', '…', ',', ';']).next().unwrap_or_default().to_owned())
        .filter(|name| name.starts_with(char::is_alphabetic))
        .collect()
}

#[test]
fn the_options_that_the_documentation_names_exist() {
    let help = |command: &str| {
        let mut help = Command::new(INJECTOR);
        let output = help.args(command.split_whitespace()).arg("--help").output().expect("it runs");
        String::from_utf8(output.stdout).expect("text")
    };
    let whole: String = [
        "", "run", "inject", "apply", "agent", "report", "doctor", "list", "profiles", "cleanup",
        "man",
    ]
    .into_iter()
    .map(help)
    .collect();
    let option = Regex::new(r"--([a-z][a-z-]*)").expect("a regular expression");
    let known: Vec<&str> = option
        .captures_iter(&whole)
        .filter_map(|found| found.get(1))
        .map(|name| name.as_str())
        .collect();
    let docs = Path::new(ROOT).join("docs");
    let pages =
        [docs.clone(), docs.join("howto"), docs.join("faults")].into_iter().flat_map(|folder| {
            fs::read_dir(folder)
                .expect("it is there")
                .map(|entry| entry.expect("it is read").path())
        });
    let (mut seen, mut unknown) = (0, Vec::new());
    for page in pages.chain([Path::new(ROOT).join("README.md")]) {
        // Pages on other programs' options.
        let is_excepted = ["moving", "building", "development", "packaging", "performance"]
            .contains(&page.file_stem().and_then(|name| name.to_str()).unwrap_or_default());
        if is_excepted || page.extension().is_none_or(|name| name != "md") {
            continue;
        }
        let text = fs::read_to_string(&page).expect("it is there");
        for event in Parser::new(&text) {
            let (Event::Code(code) | Event::Text(code)) = event else { continue };
            for name in code.lines().flat_map(options) {
                if !known.contains(&&*name) && !ELSEWHERE.contains(&&*name) {
                    unknown.push(format!("{}: --{name} in: {code}", page.display()));
                }
                seen += 1;
            }
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
    assert!(seen > 200, "{seen}");
}
