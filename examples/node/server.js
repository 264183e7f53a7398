// A function in JavaScript, for Node.js without any package. It shows that output (console.log) is kept and read by
// `dirigent logs`, and that a body is streamed through: what comes in upper case goes out at once, piece by piece.
//
//     dirigent deploy hello-node --dir examples/node --concurrency 50
//     echo hello | dirigent invoke hello-node
const http = require('http');
const { Transform } = require('stream');

const upper = () => new Transform({
  transform(piece, encoding, done) { done(null, piece.toString().toUpperCase()); },
});

const server = http.createServer((request, response) => {
  console.log(`${request.method} ${request.url}`);
  response.setHeader('Content-Type', 'text/plain; charset=utf-8');
  if (request.method === 'POST') {
    request.pipe(upper()).pipe(response);
  } else {
    response.end(`Hello from Node.js ${process.version}, path ${request.url}\n`);
  }
});

server.keepAliveTimeout = 0; // the data plane closes what it does not need
server.listen(Number(process.env.PORT || 8080), () => console.log('listening'));
process.on('SIGTERM', () => server.close(() => process.exit(0)));
