#[path = "solve/kit.rs"]
#[allow(dead_code)]
mod kit;
use kit::*;
use std::time::Instant;
#[tokio::test(flavor = "multi_thread")]
async fn perf() {
    for n in [500usize, 2000] {
        for shape in ["chain", "layers", "star"] {
            let mut vs = vec![vertex("v0").gives("0").done()];
            for at in 1..n {
                let mut b = vertex(&format!("v{at}")).gives("x");
                match shape {
                    "chain" => b = b.input(&vs[at - 1]),
                    "layers" => {
                        b = b.input(&vs[at - 1]);
                        if at > 10 {
                            b = b.input(&vs[at - 7]).input(&vs[at / 2]);
                        }
                    }
                    _ => {
                        if at == n - 1 {
                            for v in &vs[1..] {
                                b = b.input(v)
                            }
                        } else {
                            b = b.input(&vs[0])
                        }
                    }
                }
                vs.push(b.done());
            }
            let all: Vec<_> = vs.iter().collect();
            let bench = bench();
            let t = Instant::now();
            bench.build(&all).await.0.unwrap();
            let cold = t.elapsed();
            let t = Instant::now();
            let (job, _) = bench.job("j", &all).await;
            let loaded = t.elapsed();
            job.build(edge(&vs[n - 1])).await.unwrap();
            let built = t.elapsed();
            job.close().await;
            eprintln!("{n} {shape}: cold {cold:?} load {loaded:?} warm {built:?} close {:?}", t.elapsed());
        }
    }
}
