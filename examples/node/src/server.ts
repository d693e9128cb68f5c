import express from "express";
import ms from "ms";

const started = Date.now();
const app = express();

app.get("/", (_request, response) => {
  response.json({ service: "uptime", up: ms(Date.now() - started, { long: true }) });
});

if (process.argv.includes("--check")) {
  console.log("node service:", ms(90_000, { long: true }));
} else {
  const port = Number(process.env.PORT ?? 3000);
  const server = app.listen(port, () => console.log(`listening on ${port}`));
  process.on("SIGTERM", () => server.close(() => process.exit(0)));
}
