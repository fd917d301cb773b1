import java.io.InputStream;
import java.io.OutputStream;
import java.net.InetAddress;
import java.net.ServerSocket;
import java.net.Socket;

/** Echoes what clients send, a thread for each. */
class Echo {
    public static void main(String[] arguments) throws Exception {
        var address = InetAddress.getByName(arguments[0]);
        var listener = new ServerSocket(Integer.parseInt(arguments[1]), 50, address);
        while (true) {
            var client = listener.accept();
            new Thread(() -> echo(client)).start();
        }
    }

    private static void echo(Socket client) {
        try (client) {
            InputStream in = client.getInputStream();
            OutputStream out = client.getOutputStream();
            byte[] buffer = new byte[1024];
            for (int count; (count = in.read(buffer)) > 0; ) {
                out.write(buffer, 0, count);
            }
        } catch (java.io.IOException closed) {
            // The client has gone.
        }
    }
}
