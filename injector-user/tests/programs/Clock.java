// Answers each line of standard input with nanoseconds: what it reads, a thread of its own, or a child.
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.time.Instant;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

class Clock {
    static String now() {
        Instant now = Instant.now();
        return String.format("%d%09d", now.getEpochSecond(), now.getNano());
    }

    static String byChild() throws Exception {
        Process child = new ProcessBuilder("date", "+%s%N").start();
        try (BufferedReader output = new BufferedReader(new InputStreamReader(child.getInputStream()))) {
            return output.readLine();
        }
    }

    public static void main(String[] arguments) throws Exception {
        ExecutorService threads = Executors.newFixedThreadPool(8);
        BufferedReader input = new BufferedReader(new InputStreamReader(System.in));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            System.out.println(switch (line) {
                case "here" -> now();
                case "milliseconds" -> System.currentTimeMillis() + "000000";
                case "steady" -> Long.toString(System.nanoTime());
                case "thread" -> threads.submit(Clock::now).get();
                case "child" -> byChild();
                default -> throw new IllegalArgumentException(line);
            });
        }
        System.exit(0);
    }
}
